"""Where the views are."""

from django.urls import path

from . import views

urlpatterns = [
    path("pictures", views.submit),
    path("pictures/<str:task_id>", views.look),
    path("articles", views.publish),
    path("articles/<str:job_id>", views.article),
]

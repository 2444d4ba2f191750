"""A model's files, their download, and the pipeline that is made of them.

Knows no job.
"""

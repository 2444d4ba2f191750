"""The checks behind `sag-worker doctor`. Start at `checks`.

Owns what is checked before a worker starts and the advice that is printed. Changes nothing but a
test object in S3, which it removes.
"""

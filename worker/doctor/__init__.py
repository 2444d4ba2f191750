"""The checks behind `sag-worker doctor`. Start at `checks`.

Owns the checks before a worker starts and the advice that is printed. Writes one test object to S3
and removes it.
"""

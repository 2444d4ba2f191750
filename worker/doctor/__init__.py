"""The checks behind `sag-worker doctor`. Start at `checks`.

Owns what is tested before a worker starts and the advice that is printed. Changes nothing.
"""

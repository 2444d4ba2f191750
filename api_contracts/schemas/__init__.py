"""Writes `api_contracts/schema/v1` from the contract's types. Start at `json_schemas`.

Only `make docs` and tests import it.
"""

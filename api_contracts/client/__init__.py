"""Clients that submit and follow tasks. Start at `client`; `aio_client` is its asynchronous twin.

Owns what a caller needs beside the contract. Never imports `worker` or torch.
"""

"""Clients that submit and follow tasks. Start at `client`; `aio_client` is the asyncio version.

Owns what a caller needs beside the contract. Never imports `worker` or torch.
"""

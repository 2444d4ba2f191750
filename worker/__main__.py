"""`python -m worker` is `sag-worker`."""

from worker.cli.main import main

if __name__ == "__main__":
    main()

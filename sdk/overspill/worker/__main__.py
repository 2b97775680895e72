"""``python -m overspill.worker``: started by a parent that says what to serve."""

from overspill.worker.host import main

if __name__ == "__main__":
    main()

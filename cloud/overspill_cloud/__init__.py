"""The cloud service: a node that proves what it runs, and answers sealed requests."""

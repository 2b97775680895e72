"""`python -m overspill_cloud` is `overspill-cloud`."""

from overspill_cloud.cli import run

run()

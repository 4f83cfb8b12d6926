"""Commands of `earmark`, one file each; harness/cli.py registers them."""

"""The commands of `puna`, one file each; `puna.cli` has the table."""

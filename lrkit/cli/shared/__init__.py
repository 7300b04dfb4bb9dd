"""What verbs share: console, tables, progress, groups of options."""

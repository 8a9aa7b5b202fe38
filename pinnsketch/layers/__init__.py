"""Layers: one file each, named after its source; each has a converter that gives a changed copy of a network."""

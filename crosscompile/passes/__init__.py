"""Relax passes of our own. One file each, named after what it does; `crosscompile.lower` lists them in order."""

#!/usr/bin/env python3
"""Prints a text with each line "@include NAME@" replaced by the file NAME of a folder.

usage: expand_includes.py TEXT FOLDER
"""
import pathlib
import re
import sys


def main():
    text, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    for line in text.read_text().splitlines(keepends=True):
        include = re.fullmatch(r"@include (\S+)@\n?", line)
        sys.stdout.write((folder / include.group(1)).read_text() if include else line)


if __name__ == "__main__":
    main()

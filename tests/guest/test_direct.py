#!/usr/bin/python3
"""The life of a guest on a raw file that is opened with O_DIRECT."""
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from guest_test import GuestTest as _GuestTest


class Direct(_GuestTest):
    def test_life(self):
        self.raw("cache.direct=on")


if __name__ == "__main__":
    unittest.main()

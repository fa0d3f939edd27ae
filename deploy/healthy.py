"""Exits with 0 if URL answers with status 200: python healthy.py URL [CA's certificate]."""

import ssl
import sys
from urllib.request import urlopen

url, *ca = sys.argv[1:]
context = ssl.create_default_context(cafile=ca[0]) if ca else None
with urlopen(url, timeout=5, context=context) as answer:
    sys.exit(answer.status != 200)

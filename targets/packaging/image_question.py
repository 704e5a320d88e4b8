"""Writes a chat request that asks how many shapes an image has, for the tests of packages.

    python3 image_question.py IMAGE.png >request.json
"""
import base64
import json
import pathlib
import sys

image = base64.b64encode(pathlib.Path(sys.argv[1]).read_bytes()).decode()
content = [
    {"type": "image_url", "image_url": {"url": "data:image/png;base64," + image}},
    {"type": "text", "text": "how many shapes are there?"},
]
print(json.dumps({"messages": [{"role": "user", "content": content}]}))

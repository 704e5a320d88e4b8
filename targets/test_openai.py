#!/usr/bin/env python3
"""Test of `edge-lmm serve --http` with the Python package `openai` and with `curl`.

Starts a server and uses it as a client program would: chat, stream, image, JSON schema, tools, errors.
Needs Python 3.9 with the package openai (pip install openai), and curl.

    python3 targets/test_openai.py target/debug/edge-lmm models/demo/qwen2vl-tiny.bpk \\
        --image models/demo/shapes.png
"""
import argparse
import base64
import json
import pathlib
import re
import subprocess
import threading

import openai

SCHEMA = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["circle", "cross", "square"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["shape", "count"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "count", "description": "Counts shapes.", "parameters": SCHEMA},
    }
]
USER = {"role": "user", "content": "list the shapes."}


def start(program, model):
    """Starts a server on a free port; returns it and its port."""
    command = [program, "serve", model, "--http", "127.0.0.1:0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        found = re.search(r"listens on http://127\.0\.0\.1:(\d+)", line)
        if found:
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return server, int(found.group(1))
    raise SystemExit("the server did not start")


class Test:
    """Requests of one client."""

    def __init__(self, port, image):
        self.base = f"http://127.0.0.1:{port}/v1"
        client = openai.OpenAI(base_url=self.base, api_key="none", max_retries=0)
        self.model = client.models.list().data[0].id
        self.client, self.image = client, image

    def create(self, messages=(USER,), **options):
        """Asks for an answer."""
        options.setdefault("max_tokens", 400)
        create = self.client.chat.completions.create
        return create(model=self.model, messages=list(messages), **options)

    def question(self):
        """Returns a question about the image."""
        data = base64.b64encode(self.image.read_bytes()).decode()
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        return {"role": "user", "content": [image, {"type": "text", "text": USER["content"]}]}

    def chat(self):
        answer = self.create()
        assert answer.choices[0].message.role == "assistant"
        assert answer.usage.completion_tokens > 0

    def stream(self):
        whole = self.create([self.question()]).choices[0].message.content
        options = {"include_usage": True}
        chunks = list(self.create([self.question()], stream=True, stream_options=options))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole, (text, whole)
        assert chunks[-1].usage.completion_tokens > 0

    def image_question(self):
        answer = self.create([self.question()])
        assert answer.edge_lmm["visual_tokens"] > 0
        assert answer.choices[0].message.content

    def json_schema(self):
        form = {
            "type": "json_schema",
            "json_schema": {"name": "shapes", "schema": SCHEMA, "strict": True},
        }
        choice = self.create(response_format=form).choices[0]
        assert choice.finish_reason == "stop", choice
        value = json.loads(choice.message.content)
        assert set(value) == {"shape", "count"} and 0 <= value["count"] <= 99, value
        chunks = self.create(response_format=form, stream=True)
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        assert json.loads(text) == value
        # `parse` sends the schema of a class and reads the answer.
        class_based = self.client.chat.completions.parse
        from pydantic import BaseModel

        class Shape(BaseModel):
            is_red: bool

        parsed = class_based(
            model=self.model, messages=[USER], response_format=Shape, max_tokens=400
        )
        assert isinstance(parsed.choices[0].message.parsed, Shape)

    def json_object(self):
        answer = self.create(response_format={"type": "json_object"})
        assert answer.choices[0].message.content.startswith("{")

    def tools(self):
        options = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
        choice = self.create(**options).choices[0]
        assert choice.finish_reason == "tool_calls", choice
        call = choice.message.tool_calls[0]
        assert call.function.name == "count"
        assert set(json.loads(call.function.arguments)) == {"shape", "count"}
        result = {"role": "tool", "tool_call_id": call.id, "content": "3"}
        after = self.create([USER, choice.message, result], tools=TOOLS, max_tokens=8)
        assert after.usage.prompt_tokens_details.cached_tokens > 0

    def streamed_tools(self):
        named = {"type": "function", "function": {"name": "count"}}
        chunks = list(self.create(tools=TOOLS, tool_choice=named, stream=True, max_tokens=500,
                                  parallel_tool_calls=False))
        calls = [call for c in chunks for call in c.choices[0].delta.tool_calls or []]
        assert len(calls) == 1 and calls[0].function.name == "count", calls
        json.loads(calls[0].function.arguments)
        assert chunks[-1].choices[0].finish_reason == "tool_calls"

    def errors(self):
        broken = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "txt"}}}
        for options in (
            {"response_format": broken},
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "fly"}}},
            {"temperature": -1.0},
            {"n": 2},
        ):
            try:
                self.create(**options)
            except openai.BadRequestError as error:
                assert error.body["message"] and "\n" not in error.body["message"]
            else:
                raise AssertionError(f"{options} is accepted")
        try:
            self.client.chat.completions.create(model="other", messages=[USER])
        except openai.NotFoundError:
            pass
        else:
            raise AssertionError("another model is accepted")

    def curl(self):
        form = {"type": "regex", "pattern": "yes|no"}
        body = json.dumps({"messages": [USER], "response_format": form})
        command = ["curl", "-sS", f"{self.base}/chat/completions", "-d", body]
        command += ["-H", "Content-Type: application/json"]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        answer = json.loads(run.stdout)["choices"][0]
        assert answer["message"]["content"] in ("yes", "no"), answer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--image", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    server, port = start(arguments.program, arguments.model)
    try:
        test = Test(port, arguments.image)
        for run in (
            test.chat,
            test.stream,
            test.image_question,
            test.json_schema,
            test.json_object,
            test.tools,
            test.streamed_tools,
            test.errors,
            test.curl,
        ):
            run()
            print(f"{run.__name__}: ok")
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()

"""FastAPI and nothing else: each request has a forward pass of its own, in one of FastAPI's threads."""

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from model import Model
from pydantic import BaseModel

app = FastAPI()
model = Model()


class Question(BaseModel):
    """One text."""

    inputs: str


@app.post("/")
def ask(question: Question) -> list[Any]:
    """The likeliest labels."""
    return model.classify([question.inputs])


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")

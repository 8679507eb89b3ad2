"""Errors in OpenAI's shape, whatever went wrong and wherever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """What a client is told, in place of an answer. `param` is the field that is wrong, `code` a word for programs."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def response(self) -> JSONResponse:
        return JSONResponse(error_body(self.status, self.message, self.param, self.code), self.status, self.headers)


def client_left() -> ApiError:
    """499 is nginx's number for it; nobody is there to read it."""
    return ApiError(499, "The client has left.")


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer with a status of 400 or more."""

    error: ErrorDetail


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The JSON body of an error with this status."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def install(app: FastAPI) -> None:
    """Every exception that leaves a route, and every path or method that has none, is answered in that shape."""

    async def told(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.response()

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return ApiError(error.status_code, str(error.detail), headers=error.headers).response()

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _invalid(error.errors()).response()

    async def failed(request: Request, error: Exception) -> JSONResponse:
        return ApiError(500, "The server failed; its log says where.").response()

    app.add_exception_handler(ApiError, told)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, failed)


def _invalid(errors: Sequence[Any]) -> ApiError:
    """One sentence about the first field that is wrong. What was sent is not repeated: it may be huge, or no JSON."""
    place = [str(step) for step in errors[0]["loc"][1:]]
    param = place[0] if place else None
    if errors[0]["type"] == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {'.'.join(place)[:100]}", param=param)
    # A field of several types (`prompt`) fails once for each of them.
    told = [error["msg"].removeprefix("Value error, ") for error in errors if error["loc"][:2] == errors[0]["loc"][:2]]
    return ApiError(400, f"{param or 'The body'}: {'; or '.join(dict.fromkeys(told))}.", param=param)

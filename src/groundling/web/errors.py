"""Errors in OpenAI's format, whatever went wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from groundling.web.schemas import UNSUPPORTED

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An error for the client. `param` is the invalid field, `code` a fixed word for programs."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def response(self) -> JSONResponse:
        return JSONResponse(error_body(self.status, self.message, self.param, self.code), self.status, self.headers)


def client_disconnected() -> ApiError:
    """Status 499 is nginx's. Nobody reads it."""
    return ApiError(499, "The client disconnected.")


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every response with a status of 400 or more."""

    error: ErrorDetail


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The JSON body of an error with this status."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def add_error_handlers(app: FastAPI) -> None:
    """Answer every exception in a route, and every unknown path or method, with an `ErrorBody`."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return _as_api_error(error).response()

    for kind in (ApiError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, handle)


def _as_api_error(error: Exception) -> ApiError:
    match error:
        case ApiError():
            return error
        case HTTPException(status_code=404):
            return ApiError(404, "There is nothing at this path. /openapi.json lists the API, which is below /v1.")
        case HTTPException(status_code=405):
            allowed = (error.headers or {}).get("Allow", "another method")
            return ApiError(405, f"This path needs {allowed}.", headers=error.headers)
        case HTTPException():
            return ApiError(error.status_code, str(error.detail), headers=error.headers)
        case RequestValidationError():
            return _invalid_request(error.errors())
        case _:
            return ApiError(500, "The server failed. Its log has the details.")


def _invalid_request(errors: Sequence[Any]) -> ApiError:
    """One sentence about the first invalid field. It does not repeat the value, which may be huge or not valid JSON."""
    unsupported = [e for e in errors if e["type"] == "extra_forbidden" and e["loc"][-1] in UNSUPPORTED]
    errors = unsupported or errors
    path = [str(part) for part in errors[0]["loc"][1:]]
    param = path[0] if path else None
    if unsupported:
        where = "" if len(path) == 1 else f"{param}: "
        return ApiError(400, f"{where}{path[-1]} {UNSUPPORTED[path[-1]][1]}.", param=param)
    if not path:
        return ApiError(400, "The body must be a JSON object.")
    if errors[0]["type"] == "missing":
        return ApiError(400, f"{'.'.join(path)[:100]} is missing.", param=param)
    if errors[0]["type"] == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {'.'.join(path)[:100]}", param=param)
    # A field with several possible types, such as `prompt`, has an error for each.
    problems = [e["msg"].removeprefix("Value error, ") for e in errors if e["loc"][:2] == errors[0]["loc"][:2]]
    return ApiError(400, f"{param or 'The body'}: {'; or '.join(dict.fromkeys(problems))}.", param=param)

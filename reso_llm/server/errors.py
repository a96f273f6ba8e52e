"""Refusals in the form of OpenAI's API: a status, and one line that says what to do."""

from typing import Any


class ApiError(Exception):
    """A request that is not served, with its HTTP status and the parameter that is to blame."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param

    @property
    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": None}}


KINDS = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
"""OpenAI's name of a status; the others are invalid requests."""


def refuse(condition: bool, param: str, expected: str) -> None:
    """Raise a 400 that names a parameter and what is expected, unless `condition` holds."""
    if not condition:
        raise ApiError(400, f"{param}: expected {expected}", param)

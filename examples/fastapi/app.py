"""Puts the application together: `uvicorn --factory examples.fastapi.app:create_app`."""

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from pyscore import AsyncScoreReader, BadArgumentError, UnknownUserError

from . import accounts, pages, projects, scores
from .models import User


def create_app(database_url: str | None = None) -> FastAPI:
    """Make the application, on the database that DATABASE_URL names if none is given."""
    engine = create_async_engine(database_url or os.environ["DATABASE_URL"])

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        yield
        await engine.dispose()

    app = FastAPI(title="Builders", lifespan=lifespan)
    app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
    app.state.reader = AsyncScoreReader(engine, users=User)
    for module in (accounts, projects, scores, pages):
        app.include_router(module.router)
    app.add_exception_handler(BadArgumentError, _answer(422))
    app.add_exception_handler(UnknownUserError, _answer(404))
    return app


def _answer(status: int) -> Callable[[Request, Exception], JSONResponse]:
    """Answer with what an error says, such as that a cursor is none."""

    def answer(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status)

    return answer

"""What a request works with: a session, the reader of scores, and who acts."""

import hashlib
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from pyscore import AsyncScoreReader

from .models import User

_bearer = HTTPBearer(description="The token that signing up returned.")


async def _open_session(request: Request) -> AsyncIterator[AsyncSession]:
    sessions: async_sessionmaker[AsyncSession] = request.app.state.sessions
    async with sessions() as session:
        yield session


def _reader(request: Request) -> AsyncScoreReader:
    return request.app.state.reader


Session = Annotated[AsyncSession, Depends(_open_session)]
Reader = Annotated[AsyncScoreReader, Depends(_reader)]


async def _whose_token(
    session: Session, given: Annotated[HTTPAuthorizationCredentials, Depends(_bearer)]
) -> User:
    query = select(User).where(User.token_hash == hash_of(given.credentials))
    user = await session.scalar(query)
    if user is None:
        raise HTTPException(401, "this token is nobody's", {"WWW-Authenticate": "Bearer"})
    return user


Me = Annotated[User, Depends(_whose_token)]


def hash_of(token: str) -> str:
    """Give what is stored of a token: it is random and long, so a plain digest does."""
    return hashlib.sha256(token.encode()).hexdigest()

"""Signing up, and one's own profile."""

import secrets
from typing import Annotated

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field
from sqlalchemy.exc import IntegrityError

from .access import Me, Session, hash_of
from .models import User

router = APIRouter(tags=["accounts"])

Username = Annotated[str, Field(pattern=r"^[a-z0-9_]{3,30}$", examples=["ada"])]
# PostgreSQL's text holds any character but this one
Line = Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]
Prose = Annotated[str, Field(max_length=5000, pattern=r"^[^\x00]*$")]


class Profile(BaseModel):
    """What people say of themselves; null for what they leave open."""

    headline: Line | None = None
    bio: Prose | None = None
    avatar_url: Line | None = None
    primary_role: Line | None = None
    timezone: Line | None = None
    contact_links: dict[Line, Line] = {}
    listed: bool = Field(True, description="Whether to appear on the leaderboard.")


class SignUp(Profile):
    username: Username


class ProfileChange(Profile):
    """Only the fields that are sent are changed."""

    username: Username | None = None


class Welcome(BaseModel):
    username: str
    token: str = Field(description="Keep it: it is not stored, and not shown again.")


@router.post("/people", status_code=201)
async def sign_up(form: SignUp, session: Session) -> Welcome:
    token = secrets.token_urlsafe(32)
    session.add(User(token_hash=hash_of(token), **form.model_dump()))
    await _commit_name(session, form.username)
    return Welcome(username=form.username, token=token)


@router.patch("/me")
async def change_profile(form: ProfileChange, me: Me, session: Session) -> Profile:
    changes = form.model_dump(exclude_unset=True)
    if changes.get("username", "") is None:
        raise HTTPException(422, "a username cannot be taken away, only changed")
    for field, value in changes.items():
        setattr(me, field, value)
    await _commit_name(session, form.username or me.username)
    return Profile.model_validate(me, from_attributes=True)


async def _commit_name(session: Session, username: str) -> None:
    try:
        await session.commit()
    except IntegrityError as error:
        raise HTTPException(409, f"the username {username} is taken") from error

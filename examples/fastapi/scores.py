"""Reading scores, as JSON: a profile with its score, why it is what it is, the leaderboard."""

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel, BeforeValidator, Field

from pyscore import Profile

from .access import Reader
from .models import User

router = APIRouter(tags=["scores"])

LISTED = User.listed.is_(True)
Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(description="`next` of the page before.")]


class Person(BaseModel):
    username: str | None
    headline: str | None
    bio: str | None
    avatar_url: str | None
    contact_links: Any
    score: int | None
    tier: Annotated[str, BeforeValidator(str)] | None


class Reason(BaseModel):
    name: str
    raw: float
    points: float
    max_points: float


class Reasons(BaseModel):
    score: int | None
    points: float = Field(description="What it would be now; the score may follow later.")
    signals: list[Reason]


class Place(BaseModel):
    username: str | None
    score: int | None


class Ranking(BaseModel):
    entries: list[Place]
    next: str | None


async def find(username: str, reader: Reader) -> Profile:
    profile = await reader.profile(username)
    if profile is None:
        raise HTTPException(404, f"there is nobody called {username}")
    return profile


@router.get("/people/{username}")
async def person(username: str, reader: Reader) -> Person:
    return Person.model_validate(await find(username, reader), from_attributes=True)


@router.get("/people/{username}/score")
async def why(username: str, reader: Reader) -> Reasons:
    profile = await find(username, reader)
    explanation = await reader.explain(profile.user_id)
    return Reasons.model_validate(explanation, from_attributes=True)


@router.get("/leaderboard")
async def leaderboard(reader: Reader, limit: Limit = 20, after: After = None) -> Ranking:
    page = await reader.leaderboard(limit, after=after, where=LISTED)
    return Ranking.model_validate(page, from_attributes=True)

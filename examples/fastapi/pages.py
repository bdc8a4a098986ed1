"""Two pages for people: the leaderboard, and a profile that says why its score is what it is."""

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from fastapi.templating import Jinja2Templates

from .access import Reader
from .scores import LISTED, After, find

router = APIRouter(default_response_class=HTMLResponse, include_in_schema=False)

_templates = Jinja2Templates(Path(__file__).with_name("templates"))


@router.get("/")
async def leaderboard(request: Request, reader: Reader, after: After = None) -> HTMLResponse:
    page = await reader.leaderboard(20, after=after, where=LISTED)
    return _templates.TemplateResponse(request, "leaderboard.html", {"page": page})


@router.get("/@{username}")
async def profile(request: Request, username: str, reader: Reader) -> HTMLResponse:
    person = await find(username, reader)
    why = await reader.explain(person.user_id)
    return _templates.TemplateResponse(request, "profile.html", {"person": person, "why": why})

"""What people build: start it, invite somebody, who confirms, ship it."""

from typing import Annotated, Literal, Self

from fastapi import APIRouter, HTTPException, Path
from pydantic import BaseModel, Field
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from .access import Me, Session
from .accounts import Line, Username
from .models import Collaboration, Project, User

router = APIRouter(prefix="/projects", tags=["projects"])

ProjectId = Annotated[int, Path(ge=1, le=2**63 - 1)]


class Plan(BaseModel):
    title: Annotated[Line, Field(min_length=1, examples=["Pocket Radio"])]


class Invitation(BaseModel):
    username: Username


class Collaborator(BaseModel):
    username: str
    status: Literal["pending", "confirmed"]


class ProjectView(BaseModel):
    id: int
    title: str
    owner: str
    status: Literal["in_progress", "shipped"]
    collaborators: list[Collaborator]

    @classmethod
    def of(cls, project: Project) -> Self:
        people = [
            {"username": collaboration.user.username, "status": collaboration.status}
            for collaboration in project.collaborations
        ]
        fields = {"id": project.id, "title": project.title, "status": project.status}
        return cls.model_validate(
            fields | {"owner": project.owner.username, "collaborators": people}
        )


@router.post("", status_code=201)
async def create(plan: Plan, me: Me, session: Session) -> ProjectView:
    project = Project(title=plan.title, owner=me)
    session.add(project)
    await session.commit()
    return ProjectView.of(await _find(session, project.id))


@router.get("/{project_id}")
async def look_at(project_id: ProjectId, session: Session) -> ProjectView:
    return ProjectView.of(await _find(session, project_id))


@router.post("/{project_id}/invitations", status_code=201)
async def invite(
    project_id: ProjectId, invitation: Invitation, me: Me, session: Session
) -> ProjectView:
    project = await _find_own(session, project_id, me)
    guest = await session.scalar(select(User).where(User.username == invitation.username))
    if guest is None:
        raise HTTPException(404, f"there is nobody called {invitation.username}")
    if guest is me:
        raise HTTPException(409, "the owner is part of it already")
    invited = insert(Collaboration).values(project_id=project.id, user_id=guest.id)
    try:
        await session.execute(invited)
    except IntegrityError as error:
        raise HTTPException(409, f"{invitation.username} is invited already") from error
    await session.commit()
    return ProjectView.of(await _find(session, project_id))


@router.post("/{project_id}/confirm")
async def confirm(project_id: ProjectId, me: Me, session: Session) -> ProjectView:
    await _find(session, project_id)
    invitation = await session.get(Collaboration, (project_id, me.id))
    if invitation is None:
        raise HTTPException(403, "only who is invited may confirm")
    invitation.status = "confirmed"
    await session.commit()
    return ProjectView.of(await _find(session, project_id))


@router.post("/{project_id}/ship")
async def ship(project_id: ProjectId, me: Me, session: Session) -> ProjectView:
    project = await _find_own(session, project_id, me)
    project.status = "shipped"
    await session.commit()
    return ProjectView.of(await _find(session, project_id))


async def _find(session: Session, project_id: int) -> Project:
    project = await session.get(Project, project_id, populate_existing=True)
    if project is None:
        raise HTTPException(404, f"there is no project {project_id}")
    return project


async def _find_own(session: Session, project_id: int, me: User) -> Project:
    project = await _find(session, project_id)
    if project.owner_id != me.id:
        raise HTTPException(403, "only the owner may")
    return project

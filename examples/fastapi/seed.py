"""Some people who are there already when pyscore comes: those of pyscore's demo."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import create_engine, insert

from pyscore.demo.builders import BUILDERS

from .models import Collaboration, Project, User


def seed(database_url: str) -> int:
    """Write them, and return how many they are."""
    now = datetime.now(UTC)
    engine = create_engine(database_url)
    # not session.add(): that reads rows back, and the score's column is not there yet
    with engine.begin() as connection:
        ids: dict[str, int] = {}
        for builder in BUILDERS:
            person = insert(User).values(
                username=builder.username,
                headline=builder.headline,
                bio=builder.bio,
                avatar_url=builder.avatar,
                primary_role=builder.role,
                timezone=builder.timezone,
                contact_links=dict(builder.links),
                created_at=now - timedelta(days=builder.days),
            )
            ids[builder.username] = connection.execute(person.returning(User.id)).scalar_one()
        for builder in BUILDERS:
            for work in builder.projects:
                project = insert(Project).values(
                    owner_id=ids[builder.username],
                    title=work.title,
                    status=work.status,
                    github_stars=work.stars,
                )
                project_id = connection.execute(project.returning(Project.id)).scalar_one()
                answers = [(name, "confirmed") for name in work.confirmed]
                answers += [(name, "pending") for name in work.pending]
                for name, status in answers:
                    connection.execute(
                        insert(Collaboration).values(
                            project_id=project_id, user_id=ids[name], status=status
                        )
                    )
    engine.dispose()
    return len(ids)

"""``pyscore completion``: click's own scripts."""

import click
from click.shell_completion import get_completion_class

_HELP = """Print the script that completes commands, options and settings.

\b
bash, in ~/.bashrc:  eval "$(pyscore completion bash)"
zsh, in ~/.zshrc:    eval "$(pyscore completion zsh)"
fish, once:          pyscore completion fish >
                         ~/.config/fish/completions/pyscore.fish
"""


@click.command(help=_HELP)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a shell's script.

    Args:
        ctx: Whose root is the command to complete.
        shell: One of click's own shells.
    """
    script = get_completion_class(shell)
    assert script is not None, shell
    click.echo(script(ctx.find_root().command, {}, "pyscore", "_PYSCORE_COMPLETE").source())

"""The one exception that is the user's to mend: it is shown as a message, without a traceback, with exit code 2."""


class UserError(Exception):
    """A mistake in a config, a file or a machine; every problem names what was found, what is allowed, what to try."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def from_problems(problems: list[str], what: str) -> UserError:
    """One error for several problems: `2 problems in <what>:` and a line for each."""
    if len(problems) == 1:
        return UserError(problems[0])
    return UserError(f"{len(problems)} problems in {what}:\n" + "\n".join(f"  {p}" for p in problems))

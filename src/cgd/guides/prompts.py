"""Prompt templates: how a class name becomes a sentence."""

from collections.abc import Sequence

from cgd.errors import InputError

TEMPLATES: dict[str, tuple[str, ...]] = {
    "single": ("a photo of a {}.",),
    "photos": (
        "a photo of a {}.",
        "a close-up photo of a {}.",
        "a photo of one {} from a distance.",
        "a photo of several {}.",
        "a bright photo of a {}.",
        "a dark photo of a {}.",
        "a cropped photo that shows a {}.",
        "a snapshot with a {} in it.",
    ),
    "small": (
        "a photo of a {}.",
        "a blurry photo of a {}.",
        "a low-resolution photo of a {}.",
        "a tiny picture of a {}.",
        "a pixelated photo of a {}.",
        "a small thumbnail of a {}.",
    ),
    "signs": ("a centered photo of a {} traffic sign.",),
}
"""Named sets of templates: `single` as in the CGD paper, and `signs` as it uses for GTSRB;
`photos` and `small` average over the looks of photographs and of low-resolution images."""

DEFAULT_TEMPLATES = "single"


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Resolve a named set, or check that every template has one place for the class name.

    >>> check_templates(("signs",))
    ('a centered photo of a {} traffic sign.',)
    >>> check_templates(("art of the {}",))
    ('art of the {}',)

    Raises:
        InputError: a template without exactly one `{}`, or none at all.
    """
    given = (templates,) if isinstance(templates, str) else tuple(templates)
    if len(given) == 1 and given[0] in TEMPLATES:
        return TEMPLATES[given[0]]
    for template in given:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise InputError(
                f"template {template!r}: needs exactly one {{}} where the class name goes, "
                f"or be one of {', '.join(TEMPLATES)}"
            )
    if not given:
        raise InputError("templates: empty; give at least one, such as 'a photo of a {}.'")
    return given


def fill(template: str, name: str) -> str:
    """Put a class name into a template.

    >>> fill("a photo of a {}.", "cat")
    'a photo of a cat.'
    """
    # Not str.format: class names come from untrusted data and may hold braces.
    return template.replace("{}", name)

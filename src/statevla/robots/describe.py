"""What a robot declares, in words: for `statevla info` and model cards."""

from __future__ import annotations

from statevla.robots.declaration import ActionGroup, Camera, StateField


def group_text(group: ActionGroup) -> str:
    """`x, y, z: continuous, delta, -1 to 1`."""
    if group.kind == "binary":
        off, on = group.values
        parts = [f"binary, {off:g} (off) or {on:g} (on)"]
    else:
        parts = ["continuous", group.mode]
        if group.low is not None or group.high is not None:
            low, high = ("any" if bound is None else f"{bound:g}" for bound in (group.low, group.high))
            parts.append(f"{low} to {high}")
    parts += [group.role] if group.role else []
    parts += [f"measured by {group.state}"] if group.state else []
    return f"{', '.join(group.dims)}: {', '.join(parts)}"


def field_text(field: StateField) -> str:
    """`left, right (m): gripper opening`."""
    units = f" ({field.units})" if field.units else ""
    parts = [field.role.replace("_", " ")] if field.role else []
    parts += [] if field.policy else ["not seen by the policy"]
    return f"{', '.join(field.dims)}{units}" + (f": {', '.join(parts)}" if parts else "")


def camera_text(camera: Camera) -> str:
    """`stored upright; a frame that is not square gets bars`."""
    fits = {"pad": "gets bars", "crop": "is cropped to its middle", "stretch": "is stretched"}
    stored = camera.orientation.value.replace("_", " ")
    return f"stored {stored}; a frame that is not square {fits[camera.fit]}"

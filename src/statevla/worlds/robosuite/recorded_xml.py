"""Recorded scenes in the robosuite that is installed.

A demonstration's XML names files of another computer, and parts by the names of the robosuite of its day, which later
releases do not find. What makes an episode its own are the furniture and the objects (robosuite draws their sizes at
random), the cameras, and where the robots stand; so these move into the installed environment's XML.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import mujoco

from statevla.errors import UserError

_ROBOT_BODY = re.compile(r"robot(\d+)_")
_POSE = ("pos", "quat", "axisangle", "euler", "xyaxes", "zaxis")
_DIRT = re.compile(r"contact_(\d+)")
_KEPT = ("compiler", "option", "default", "worldbody")


def with_recorded_scene(current: str, recorded: str, source: str) -> str:
    """The installed environment's XML `current` with furniture, objects, cameras and robots' places of `recorded`.

    Raises:
        UserError: `recorded` is not a scene of the same robots; `source` begins the message.
    """
    root, old = ElementTree.fromstring(current), _parse(recorded, source)
    world, old_world = root.find("worldbody"), old.find("worldbody")
    assert world is not None
    if old_world is None:
        raise UserError(f"{source}: the scene's XML has no worldbody; record it with robosuite")
    robots = {_robot_number(body): body for body in world.findall("body")}
    robots.pop(None, None)
    for part in [*world.findall("body"), *world.findall("camera")]:
        world.remove(part)
    # In the recorded order, which is that of the numbers in a state.
    for part in old_world:
        number = _robot_number(part)
        if part.tag == "camera" or (part.tag == "body" and number is None):
            world.append(part)
        elif part.tag == "body":
            body = robots.pop(number, None)
            if body is None:
                raise UserError(
                    f"{source}: its scene has the robot body '{part.get('name')}', the environment does not"
                )
            for key in _POSE:
                body.attrib.pop(key, None)
                if key in part.attrib:
                    body.set(key, part.attrib[key])
            world.append(body)
    if robots:
        raise UserError(f"{source}: its scene lacks {len(robots)} robots of the environment; correct 'env_args'")
    return ElementTree.tostring(root, encoding="unicode")


def kinematic_model(recorded: str, source: str) -> Any:
    """Bodies and joints of a recorded scene alone, as `mujoco.MjModel`: where everything was, whatever it looked like.

    Raises:
        UserError: MuJoCo cannot compile it.
    """
    root = _parse(recorded, source)
    for section in list(root):
        if section.tag not in _KEPT:
            root.remove(section)
    for body in root.iter():
        for part in list(body):
            if part.tag in ("geom", "site", "camera", "light"):
                body.remove(part)
    compiler = root.find("compiler")
    compiler = ElementTree.SubElement(root, "compiler") if compiler is None else compiler
    compiler.set("boundmass", "0.001")  # bodies whose mass was that of their shapes
    compiler.set("boundinertia", "0.000001")
    try:
        return mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"))
    except ValueError as error:
        raise UserError(f"{source}: MuJoCo cannot read its scene ({' '.join(str(error).split())[:160]})") from None


def _parse(text: str, source: str) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(f"{source}: the scene's XML is damaged ({error}); copy the file again") from None
    _modernize(root)
    return root


def _modernize(root: ElementTree.Element) -> None:
    """Spell a scene of robosuite 1.0 as later releases do."""
    for part in root.iter():
        if part.get("pos", "").startswith("["):
            part.set("pos", part.get("pos", "").strip("[]").replace(",", " "))
        dirt = _DIRT.fullmatch(part.get("name", ""))
        if dirt and part.tag in ("body", "geom"):
            part.set("name", f"contact{dirt[1]}_main" if part.tag == "body" else f"contact{dirt[1]}_g0_vis")


def _robot_number(body: ElementTree.Element) -> str | None:
    match = _ROBOT_BODY.match(body.get("name", ""))
    return match[1] if match else None

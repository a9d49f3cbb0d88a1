"""Opens the zip packages of Word, Excel, PowerPoint and EPUB and parses the XML parts in them, with care.

Owns: limits against archives that unpack to more than memory holds, and the safe XML parser: no entities, no DTD, no
network. A relationship to something outside the package is never followed. Does not know what the parts mean.
"""

import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO

from lxml import etree

from core.errors import InvalidFile

MAX_XML_BYTES = 64 * 1024 * 1024  # of all XML parts together, unpacked; a 1,000-page novel is about 10 MiB
MAX_PARTS = 20_000

_XML_ENDINGS = (".xml", ".rels", ".opf", ".ncx", ".xhtml", ".html", ".htm")
_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
_RELATIONSHIPS = "{http://schemas.openxmlformats.org/package/2006/relationships}"
_DAMAGED = "The file is damaged: {what}. Open it in the program that made it and save it again."


class OfficePackage:
    """One opened file; parts are named by their path in the archive."""

    def __init__(self, data: bytes) -> None:
        """Open the archive and check its declared size.

        Raises:
            InvalidFile: The archive is damaged or unpacks to too much.
        """
        try:
            self._archive = zipfile.ZipFile(BytesIO(data))
        except (zipfile.BadZipFile, ValueError, RuntimeError, OverflowError, EOFError) as error:
            raise InvalidFile(_DAMAGED.format(what="it is not a whole archive")) from error
        parts = self._archive.infolist()
        size = sum(part.file_size for part in parts if part.filename.endswith(_XML_ENDINGS))
        if size > MAX_XML_BYTES or len(parts) > MAX_PARTS:
            raise InvalidFile(
                f"The file unpacks to {size / 2**20:,.0f} MiB of XML in {len(parts):,} parts; "
                f"the limits are {MAX_XML_BYTES // 2**20} MiB and {MAX_PARTS:,} parts. Split it into smaller files."
            )
        self._names = {part.filename for part in parts}
        self._left_bytes = MAX_XML_BYTES  # whatever parts are called: any name may stand for XML

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def read_xml(self, name: str) -> etree._Element:
        """Parse one part.

        Raises:
            InvalidFile: The part cannot be read, is not XML, or declares a DTD, which no Office program writes.
        """
        data = self.read_part(name)
        # A parser for each part: one that failed keeps its error log.
        parser = etree.XMLParser(
            resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True
        )
        try:
            root = etree.fromstring(data, parser)
        except (etree.XMLSyntaxError, ValueError) as error:
            raise InvalidFile(_DAMAGED.format(what=f"its part {name} is not XML")) from error
        if root.getroottree().docinfo.doctype:
            raise InvalidFile(f"The file's part {name} declares a DTD, which such files never hold. It was refused.")
        return root

    def read_part(self, name: str) -> bytes:
        """Unpack one part.

        Raises:
            InvalidFile: The part is missing, encrypted or damaged, or more was unpacked already than a file may hold.
        """
        try:
            part = self._archive.getinfo(name)
            self._left_bytes -= part.file_size
            if self._left_bytes < 0:
                limit = MAX_XML_BYTES // 2**20
                raise InvalidFile(f"The file unpacks to more than {limit} MiB of XML. Split it into smaller files.")
            if part.compress_type not in _METHODS:
                raise InvalidFile(_DAMAGED.format(what=f"its part {name} is packed as no such program packs"))
            # zipfile never yields more than the size that the directory declares, which was counted above.
            return self._archive.read(part)
        except KeyError as error:
            raise InvalidFile(_DAMAGED.format(what=f"its part {name} is missing")) from error
        except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError, ValueError) as error:
            raise InvalidFile(_DAMAGED.format(what=f"its part {name} cannot be unpacked")) from error

    def read_relationships(self, name: str) -> dict[str, tuple[str, str]]:
        """Return the parts that a part points to: id -> (last word of the type, path in the archive).

        Args:
            name: The part that points; "" for the package itself.

        Raises:
            InvalidFile: The list of relationships is damaged.
        """
        folder, base = posixpath.split(name)
        listing = posixpath.join(folder, "_rels", f"{base}.rels")
        if listing not in self:
            return {}
        found = {}
        for relationship in self.read_xml(listing).iter(f"{_RELATIONSHIPS}Relationship"):
            if relationship.get("TargetMode") == "External":
                continue
            target = posixpath.normpath(posixpath.join("/", folder, relationship.get("Target", ""))).lstrip("/")
            found[relationship.get("Id", "")] = (relationship.get("Type", "").rpartition("/")[2], target)
        return found

    def find_related(self, name: str, kind: str) -> Iterator[str]:
        """Yield the parts of one kind ("styles", "notesSlide") that a part points to and that are there."""
        for found, target in self.read_relationships(name).values():
            if found == kind and target in self:
                yield target

    def find_main_part(self) -> str:
        """Return the path of the document itself; its name is a convention only.

        Raises:
            InvalidFile: The package names none.
        """
        for target in self.find_related("", "officeDocument"):
            return target
        raise InvalidFile(_DAMAGED.format(what="it does not say which part is the document"))


def local_name(element: etree._Element) -> str:
    """Return a tag without its namespace, so that the strict and the transitional variants read alike."""
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def read_attribute(element: etree._Element | None, name: str) -> str | None:
    """Return an attribute by its name without namespace, or None."""
    if element is None:
        return None
    for key, value in element.attrib.items():
        if str(key).rpartition("}")[2] == name:
            return str(value)
    return None


def find_child(element: etree._Element | None, *path: str) -> etree._Element | None:
    """Return the first descendant along a path of local names, or None."""
    for name in path:
        if element is None:
            return None
        element = next((child for child in element if local_name(child) == name), None)
    return element

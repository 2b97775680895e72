"""XML with an enveloped signature, as NVIDIA signs its reference manifests: read and verified.

One profile of XML Signature (W3C, "XML Signature Syntax and Processing" 1.1) and nothing else: one
``Signature`` as a child of the root, over the whole document without it, Canonical XML 1.1,
SHA-384, ECDSA P-384. A document type declaration is refused, and with it every entity.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from xml.parsers import expat

from overspill.errors import EvidenceRejected
from overspill.trust.base import rejected
from overspill.trust.certificates import Certificate, parse_certificate

MAX_BYTES: Final = 1 << 20
DSIG: Final = "http://www.w3.org/2000/09/xmldsig#"
_C14N: Final = "http://www.w3.org/2006/12/xml-c14n11"
_ENVELOPED: Final = DSIG + "enveloped-signature"
_ECDSA_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#sha384"
_MAX_DEPTH: Final = 32
_STEP: Final = "7"


@dataclass(slots=True)
class Element:
    """One element with its attributes as written, and the namespaces in scope."""

    name: str
    attributes: dict[str, str]
    scope: Mapping[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def qualified(self) -> tuple[str, str]:
        """Namespace and local name."""
        prefix, _, local = self.name.rpartition(":")
        return self.scope.get(prefix, ""), local

    def elements(self, local: str, namespace: str) -> list[Element]:
        """Direct children of that name."""
        found = (child for child in self.children if isinstance(child, Element))
        return [child for child in found if child.qualified == (namespace, local)]

    def one(self, local: str) -> Element:
        """The only direct child of that name in the signature's namespace."""
        found = self.elements(local, DSIG)
        if len(found) != 1:
            raise _malformed(f"{len(found)} elements {local}")
        return found[0]

    @property
    def text(self) -> str:
        """The text inside."""
        return "".join(child for child in self.children if isinstance(child, str))


@dataclass(frozen=True, slots=True)
class SignedXml:
    """A document whose signature covers all of it; who signed is still to be believed."""

    root: Element
    signed_info: bytes
    signature: bytes
    certificates: tuple[Certificate, ...]


def parse_signed(data: bytes) -> SignedXml:
    """Reads a document and checks its digest. Reasons: ``rim_malformed``, ``rim_digest``."""
    root = _parse(data)
    signature = root.one("Signature")
    info = signature.one("SignedInfo")
    if canonical_digest(root, without=signature) != _digest_of(info):
        raise rejected(
            "rim_digest", _STEP, expected="the document that was signed", actual="another"
        )
    certificates = [
        parse_certificate(_base64(one.text))
        for one in signature.one("KeyInfo").one("X509Data").elements("X509Certificate", DSIG)
    ]
    value = _base64(signature.one("SignatureValue").text)
    return SignedXml(root, canonical(info), value, tuple(certificates))


def canonical(element: Element, without: Element | None = None) -> bytes:
    """Canonical XML 1.1 of an element and what is inside, comments left out."""
    return "".join(_canonical(element, {}, without)).encode("utf-8")


def canonical_digest(element: Element, without: Element | None) -> bytes:
    """SHA-384 of the canonical form."""
    return hashlib.sha384(canonical(element, without)).digest()


def _digest_of(info: Element) -> bytes:
    """The one reference's digest; every algorithm is the one that is known."""
    reference = info.one("Reference")
    transforms = reference.one("Transforms").elements("Transform", DSIG)
    algorithms = (
        info.one("CanonicalizationMethod").attributes.get("Algorithm"),
        info.one("SignatureMethod").attributes.get("Algorithm"),
        reference.one("DigestMethod").attributes.get("Algorithm"),
        *(transform.attributes.get("Algorithm") for transform in transforms),
    )
    if algorithms != (_C14N, _ECDSA_SHA384, _SHA384, _ENVELOPED, _C14N):
        raise _malformed("another kind of signature")
    if reference.attributes != {"URI": ""}:
        raise _malformed("a reference to a part of the document")
    return _base64(reference.one("DigestValue").text)


def _canonical(
    element: Element, rendered: Mapping[str, str], without: Element | None
) -> Iterator[str]:
    fresh = {p: uri for p, uri in element.scope.items() if rendered.get(p, "") != uri}
    names = [(f' xmlns:{p}="' if p else ' xmlns="') + _value(fresh[p]) + '"' for p in sorted(fresh)]
    attributes = sorted(element.attributes.items(), key=lambda pair: _sort_key(element, pair[0]))
    yield f"<{element.name}" + "".join(names)
    yield "".join(f' {name}="{_value(value)}"' for name, value in attributes) + ">"
    for child in element.children:
        if isinstance(child, str):
            yield _text(child)
        elif child is not without:
            yield from _canonical(child, element.scope, without)
    yield f"</{element.name}>"


def _sort_key(element: Element, name: str) -> tuple[str, str]:
    prefix, _, local = name.rpartition(":")
    return (element.scope.get(prefix, "") if prefix else "", local)


def _text(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("\r", "&#xD;")


def _value(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return escaped.replace("\t", "&#x9;").replace("\n", "&#xA;").replace("\r", "&#xD;")


def _parse(data: bytes) -> Element:
    if len(data) > MAX_BYTES:
        raise _malformed(f"{len(data)} bytes, at most {MAX_BYTES} are read")
    builder = _Builder()
    try:
        builder.parser.Parse(data, True)
    except (expat.ExpatError, ValueError) as error:
        raise _malformed(" ".join(str(error).split())) from error
    return builder.root


class _Builder:
    """Makes elements of what the parser tells; anything but elements and text is refused."""

    def __init__(self) -> None:
        self.root = Element("", {}, {})  # stays for no document: expat refuses one without
        self._open: list[Element] = []
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.ordered_attributes = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.ProcessingInstructionHandler = self._refuse

    def _start(self, name: str, pairs: list[str]) -> None:
        if len(self._open) >= _MAX_DEPTH:
            raise _malformed(f"more than {_MAX_DEPTH} levels")
        attributes = dict(zip(pairs[::2], pairs[1::2], strict=True))
        scope = dict(self._open[-1].scope) if self._open else {}
        for key in [key for key in attributes if key == "xmlns" or key.startswith("xmlns:")]:
            scope[key[6:]] = attributes.pop(key)
        element = Element(name, attributes, scope)
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def _end(self, name: str) -> None:
        del name
        self._open.pop()

    def _characters(self, text: str) -> None:
        self._open[-1].children.append(text)

    def _refuse(self, *args: Any) -> None:
        del args
        raise _malformed("a document type or a processing instruction")


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed("a value that is not base64") from error


def _malformed(what: str) -> EvidenceRejected:
    return rejected("rim_malformed", _STEP, expected="a signed manifest", actual=what)

"""The judgements of a report as JUnit XML."""

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from ...deploy.visible import visible
from ..analysis.model_schema import Model
from ..analysis.report_schema import ComparisonRow, Document
from ..analysis.wording import headline_of, model_name, noise_summary


def junit(document: Document) -> str:
    """JUnit XML: the headline, one test case per judgement of a candidate, and the signs of noise."""
    suite = ElementTree.Element("testsuite", name="edgekit validate")
    cases = 0
    failed = 0
    properties = ElementTree.SubElement(suite, "properties")
    ElementTree.SubElement(properties, "property", name="headline", value=_xml(headline_of(document)))
    for model in _models(document):
        for judgement in model.get("judgements", []):
            cases += 1
            named = {"classname": _xml(model_name(model)), "name": _xml(judgement["rule"])}
            case = ElementTree.SubElement(suite, "testcase", named)
            sentence = _xml(judgement["sentence"])
            if judgement["outcome"] == "fail" or judgement["exit_code"]:
                failed += 1
                ElementTree.SubElement(case, "failure", message=sentence)
            elif judgement["outcome"] == "inconclusive":
                ElementTree.SubElement(case, "skipped", message=sentence)
            else:
                ElementTree.SubElement(case, "system-out").text = sentence
    suite.set("tests", str(cases))
    suite.set("failures", str(failed))
    if document["noise"]:
        ElementTree.SubElement(suite, "system-err").text = "\n".join(map(_xml, noise_summary(document)))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def _models(document: Document) -> Sequence[Model | ComparisonRow]:
    """The models; with several devices, each name begins with the device."""
    if "devices" in document:
        return [
            {**model, "name": f"{report['device']['name']} {model['name']}"}
            for report in document["devices"]
            for model in report["models"]
        ]
    return document["models"] if "models" in document else document["rows"]


def _xml(text: str) -> str:
    """Text for XML 1.0 (production 2), which excludes two characters that `visible` keeps."""
    return re.sub("[\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", visible(text))

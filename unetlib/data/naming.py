"""Who is one patient: the naming schemes of public data sets, and the table `patients.csv` that overrides them.

A data set often holds several scans of one patient, and a split must keep them together. Which part of a case's id
names the patient is written here and nowhere else: each scheme is one line of `SCHEMES`.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from unetlib.support.errors import UnetlibError, counted, first_of, is_text
from unetlib.support.files import PARTIAL, read_csv
from unetlib.support.paths import fold

TABLE = "patients.csv"
SUMMARY, SLICE_TABLE = "summary.json", "slices.csv"  # beside the scores of an evaluation, whose table has the same name
_WRITE_TABLE = f"write a table {TABLE} with the columns case and patient into the data folder"

_SEPARATOR = "[-_./ ]"
_DAY, _MONTH, _YEAR = "(?:0[1-9]|[12][0-9]|3[01])", "(?:0[1-9]|1[0-2])", "(?:19|20)[0-9]{2}"
_DATE = rf"(?:{_YEAR}[-._]?{_MONTH}[-._]?{_DAY}|{_DAY}[-._]{_MONTH}[-._]{_YEAR})"
_CLOCK = "(?:T?[0-2][0-9][0-5][0-9](?:[0-5][0-9])?|[T_ -][0-2][0-9][-.:h][0-5][0-9](?:[-.:m][0-5][0-9])?)"
_VISIT = "(?:time[-_]?point|time|tp|session|ses|visit|follow[-_]?up|fu)"
_UNIT = "(?:weeks?|wk|months?|mo|days?|years?|yr)"
_TREATED = "(?:op|operative|operation|surgery|surgical|treatment|rt|radiotherapy|chemo|therapy)"
_STAGE = (
    rf"(?:(?:pre|prae|post|intra)(?:[-_]?{_TREATED})?|baseline|screening|initial|follow[-_]?up|fu|recurrence|recurrent|"
    "progression|relapse|rescan|retest|repeat|before|after)[0-9]{0,2}"
)
_SPAN = rf"(?:{_UNIT}[-_. ]?[0-9]{{1,4}}|[0-9]{{1,4}}[-_]?{_UNIT}|fu[0-9]{{1,4}}[dwmy])"
_WORD = rf"(?:{_VISIT}[-_. ]?[0-9]{{1,2}}|{_SPAN}|{_STAGE})"
# These mean a time after a name with a digit; after `glioma` they could mean anything.
_NUMBERED = rf"(?:{_WORD}|{_DATE}{_CLOCK}?|{_VISIT}[-_. ]?[0-9]{{1,4}}|run[-_]?[0-9]{{1,2}}|[tv][-_]?[0-9]{{1,2}})"


@dataclass(frozen=True)
class Scheme:
    """How one data set names its cases: `person` matches the part that names the patient, `scan` the rest.

    `unique`: only this data set uses such names, so a name means the same patient in every folder.
    """

    name: str
    example: str
    source: str
    person: str
    scan: str = r"(?:[-_./ ].+)?"
    unique: bool = True

    @cached_property
    def ids(self) -> re.Pattern[str]:
        """The pattern of a whole id; its first group is the patient."""
        return re.compile(f"({self.person}){self.scan}", re.IGNORECASE | re.ASCII)


_TCIA = "The Cancer Imaging Archive"
_OTHER_TCIA = r"(?:burdenko-gbm(?:-progression)?|pgbm|ucsd-ptgbm|acrin(?:-[a-z]+)+|qin(?:-[a-z]+)+|vs-seg)-\d+"
_BRATS_17 = r"brats(?:20)?1[789]_[a-z0-9]+_[a-z0-9]+"
_REG, _FETS, _GLIS_RT = r"bratsreg_(?:[a-z]+_)?\d+", r"fets(?:\d+|-\d+)?(?:_[a-z]+)?_\d+", "(?:gbm|aac|ada|ast|aod|od)"
_WEEK, _TIMEPOINT = rf"{_SEPARATOR}week-\d+(?:-\d+)?", rf"(?:{_SEPARATOR}timepoint_\d+)?"
_TIMES, _WORDS = f"(?:{_SEPARATOR}{_NUMBERED})+", f"(?:{_SEPARATOR}{_WORD})+"

# The first scheme that matches the whole id wins. A number after an unknown name is not a time point: `patient_2` is
# another patient than `patient_1`. A date or a word of time is one after any name.
# fmt: off
SCHEMES = (
    Scheme("BraTS 2012-2016", "brats_tcia_pat105_0001", "Menze et al. 2015, IEEE TMI 34",
           r"(?:vsd\.)?brats_(?:2013|tcia)_pat\d+", "(?:_.+)?"),
    Scheme("BraTS 2017-2019", "Brats18_TCIA02_151_1", "Bakas et al. 2017, Sci. Data 4:170117", _BRATS_17, r"(?:_\d+)?"),
    Scheme("BraTS 2020", "BraTS20_Training_001", "Bakas et al. 2018, arXiv:1811.02629", r"brats20_[a-z]+_\d+"),
    Scheme("BraTS 2021", "BraTS2021_00000", "Baid et al. 2021, arXiv:2107.02314", r"brats2021_\d+"),
    Scheme("BraTS-Reg", "BraTSReg_001_01_0106", "Baheti et al. 2021, arXiv:2112.06979", _REG),
    Scheme("BraTS 2023/2024", "BraTS-GLI-00005-100", "de Verdier et al. 2024, arXiv:2405.18368",
           r"brats(?:[-_][a-z]+)+[-_]\d+"),
    Scheme("Medical Segmentation Decathlon", "BRATS_001", "Antonelli et al. 2022, Nat. Commun. 13", r"brats_\d+", ""),
    Scheme("FeTS", "FeTS2022_00000", "Pati et al. 2021, arXiv:2105.05874", _FETS),
    Scheme("TCGA", "TCGA-02-0006_1996.08.23", "Bakas et al. 2017, Sci. Data 4", r"tcga[-_][a-z0-9]+[-_][a-z0-9]+"),
    Scheme("UPENN-GBM", "UPENN-GBM-00006_21", "Bakas et al. 2022, Sci. Data 9:453", r"upenn[-_]gbm[-_]\d+"),
    Scheme("UCSF-PDGM", "UCSF-PDGM-0429_FU003d", "Calabrese et al. 2022, Radiol. Artif. Intell. 4",
           r"ucsf[-_]pdgm[-_]\d+"),
    Scheme("RHUH-GBM", "RHUH-0001_2", "Cepeda et al. 2023, Data in Brief 50", r"rhuh(?:[-_]gbm)?[-_]\d+"),
    Scheme("EGD", "EGD-0001", "van der Voort et al. 2021, Data in Brief 37", r"egd-\d+"),
    Scheme("ReMIND", "ReMIND-001_preop", "Juvekar et al. 2024, Sci. Data 11:494", r"remind-\d+"),
    Scheme("CPTAC-GBM", "C3L-00016_2000.01.01", _TCIA, r"c3[ln]-\d{5}"),
    Scheme("Yale-Brain-Mets", "YG_0A1B2C3D4E5F_2011-05-11", _TCIA, r"yg_[a-z0-9]{6,}"),
    Scheme("other collections of TCIA", "Burdenko-GBM-Progression-001_2", _TCIA, _OTHER_TCIA),
    Scheme("GLIS-RT", "GLI_001_GBM", _TCIA, rf"gli_\d{{3}}_{_GLIS_RT}"),
    Scheme("BIDS", "sub-01_ses-1", "Gorgolewski et al. 2016, Sci. Data 3:160044", "sub-[a-z0-9]+", unique=False),
    Scheme("LUMIERE", "Patient-001_week-000-1", "Suter et al. 2022, Sci. Data 9:768", r"patient-\d+", _WEEK, False),
    Scheme("MU-Glioma-Post", "PatientID_0003_Timepoint_1", _TCIA, r"patientid_\d+", _TIMEPOINT, False),
    Scheme("UCSF-ALPTDG", "100010_time1", "Fields et al. 2024, Radiol. Artif. Intell. 6", r"\d{6}", r"_time\d", False),
    Scheme("a date or a word of time behind a name with a number", "P07_2019-03-01", "usual in hospitals",
           r".*?\d.*?", _TIMES, False),
    Scheme("a word of time behind a name", "Anna_baseline", "usual in hospitals", ".+?", _WORDS, False),
)
# fmt: on


def key(name: str) -> str:
    """Return a name as it is compared: letter case and the encoding of accents do not count."""
    text = fold(name)
    return text.replace("_", "-") if text.startswith("tcga") else text  # both are in use


def scheme_of(id: str) -> Scheme | None:
    """Return the naming scheme of a case's id, `None` for an unknown one."""
    return next((scheme for scheme in SCHEMES if scheme.ids.fullmatch(id)), None)


def patient_of(id: str) -> str:
    """Return the part of a case's id that names the patient: all of it under an unknown scheme."""
    matches = (scheme.ids.fullmatch(id) for scheme in SCHEMES)
    return next((match[1] for match in matches if match), id)


def is_time(end: str) -> bool:
    """Tell whether the end of an id, such as `_FU003d` or `_2`, is a time or a number, not another word."""
    return bool(re.fullmatch(rf"(?:{_SEPARATOR}(?:{_NUMBERED}|[0-9]+))+", end, re.IGNORECASE | re.ASCII))


def world_name(id: str) -> str | None:
    """Return the key of the patient where the name means one patient in every folder, else `None`."""
    scheme = scheme_of(id)
    return key(patient_of(id)) if scheme and scheme.unique else None


def divided(parts: Mapping[str, str], patients: Mapping[str, str]) -> list[str]:
    """Return the patients with scans in two parts of a split, as an older version may have made it.

    `parts`: id of a case -> its part. `patients`: id -> patient, for the cases that still exist.
    """
    names: dict[str, str] = {}
    found: dict[str, set[str]] = defaultdict(set)
    for id, part in parts.items():
        name = patients.get(id, patient_of(id))
        found[names.setdefault(key(name), name)].add(part)
    return sorted(name for name, own in found.items() if len(own) > 1)


# An unknown name that ends in one or two letters, a small number, a date or a word of order; or has a time inside.
_TAIL = re.compile(
    rf"(.+?)(?:{_SEPARATOR}(?:[a-z]{{0,2}}\d{{0,4}}[a-z]?|{_DATE}(?:[-_]\d+)?|[a-z]+\d+|"
    r"early|late|first|second|third|last|\d(?:st|nd|rd|th))|(?<=\d)[a-z])",
    re.IGNORECASE,
)
_INSIDE = re.compile(rf"(?:(.+?){_SEPARATOR})?{_NUMBERED}({_SEPARATOR}.+)", re.IGNORECASE)
FEW = 4  # scans under a name without a digit that may be of one patient: `anna_2`, but not a thousand `glioma_0002`


def hidden_time_points(ids: Iterable[str]) -> list[list[str]]:
    """Return groups of ids, under no known scheme, that could be scans of one patient each.

    They share a stem and differ in a short end: `17_1`, `17_2` beside `18_1`. If all ids of a folder share one stem,
    they are an enumeration, unless one of them is the stem itself or they end in dates.
    """
    names = sorted({id for id in ids if scheme_of(id) is None})
    groups: dict[str, list[str]] = defaultdict(list)
    for id in names:
        for match in filter(None, (_TAIL.fullmatch(id), _INSIDE.fullmatch(id))):
            groups[key("".join(filter(None, match.groups())).lstrip("-_./ "))].append(id)
    bare = {key(id): id for id in names}
    for stem in groups.keys() & bare.keys():
        groups[stem].insert(0, bare[stem])

    def suspicious(stem: str, group: list[str]) -> bool:
        enumeration = len(group) == len(names) and not (stem in bare or re.search(_DATE, group[0]))
        if re.fullmatch(_NUMBERED, stem) or enumeration or len(group) < 2:
            return False
        return len(group) <= FEW or bool(re.search(r"\d", stem))

    return sorted(group for stem, group in groups.items() if suspicious(stem, group))


def doubt(ids: Iterable[str]) -> str:
    """Return a sentence about names that could hide time points, or be an enumeration; empty if there are none."""
    ids = list(ids)
    if len(ids) > 2 and len({key(patient_of(id)) for id in ids}) == 1 and not world_name(ids[0]):
        all_of_one = f"By their names, all {len(ids)} cases are scans of one patient, {patient_of(ids[0])}."
        return f"{all_of_one} If they are not, {_WRITE_TABLE}."
    if not (groups := hidden_time_points(ids)):
        return ""
    return (
        f"{', '.join(groups[0][:3])} could be scans of one patient, but no naming scheme says so: each counts as a "
        f"patient of its own, and a split could separate them ({counted(len(groups), 'such group')}). If they are of "
        f"one patient, {_WRITE_TABLE}; if not, do nothing."
    )


def is_table(path: Path) -> bool:
    """Tell whether a file is a table of patients: by its name, unless scores of that name lie there."""
    return path.name.lower() == TABLE and not any(
        path.with_name(name).exists() for name in (SUMMARY, SLICE_TABLE, PARTIAL)
    )


def read_table(path: Path, ids: Collection[str]) -> dict[str, str]:
    """Return the patient of each case that a table `patients.csv` names; `ids` are the cases of the folder.

    Raises `UnetlibError` when it cannot be read, lacks a column or patient, gives a case two, or names an unknown one.
    """
    try:
        rows = read_csv(path)
    except UnetlibError as error:
        raise UnetlibError(f"{error} A CSV file in UTF-8 with the columns case and patient was expected.") from error
    columns = {key(name.strip()): name for name in (rows[0] if rows else {})}
    if not {"case", "patient"} <= columns.keys():
        found = ", ".join(map(repr, columns.values())) or "no row"
        raise UnetlibError(
            f"{path} holds {found}; a first line with the columns case and patient, divided by a comma, was expected, "
            "and a line for each case. If it is a table of something else, give it another name."
        )
    known, unknown = {key(id): id for id in ids}, []
    table: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        if not any(cell for cells in row.values() for cell in cells):
            continue
        case, patient, more = row[columns["case"]].strip(), row[columns["patient"]].strip(), any(row.get("", ""))
        if not (case and patient and is_text(patient)) or more:
            raise UnetlibError(
                f"{path}, row {number}: the case {case!r} and the patient {patient!r}{' and more' * more} were found; "
                "one name for each was expected."
            )
        if (id := known.get(key(case))) is None:
            unknown.append(case)
        elif key(table.setdefault(id, patient)) != key(patient):
            raise UnetlibError(f"{path} gives {id} to {table[id]} and to {patient}. Keep one of the two lines.")
    if unknown:
        raise UnetlibError(
            f"{path} names {counted(len(unknown), 'case')} that the folder does not hold ({first_of(unknown, 5)}). "
            f"Write the ids of the cases, such as {min(ids, default='')}, or delete these lines."
        )
    return table

"""Who is one patient: by the names of public data sets, or by a table; never two people in one, never one in two."""

import tarfile

import pytest

from tests.test_patients import IMAGE, brats, style
from unetlib.data.check import check
from unetlib.data.naming import SCHEMES, hidden_time_points, key, patient_of, scheme_of, world_name
from unetlib.data.patients import find_cases
from unetlib.support.errors import UnetlibError


def ids(text):
    return text.split()


ONE = {  # ids of one patient each, by the name of the patient
    "UPENN-GBM-00006": ["UPENN-GBM-00006_11", "UPENN-GBM-00006_21", "UPENN-GBM-00006"],
    "UCSF-PDGM-0429": ["UCSF-PDGM-0429", "UCSF-PDGM-0429_FU003d"],
    "100010": ["100010_time1", "100010_time2"],
    "TCGA-02-0006": ["TCGA-02-0006_1996.08.23", "TCGA-02-0006_1997.01.02", "TCGA-02-0006"],
    "TCGA_CS_4941": ["TCGA_CS_4941_19960909", "TCGA_CS_4941_19981004"],
    "sub-01": ["sub-01_ses-1", "sub-01_ses-2", "sub-01_ses-pre_run-1", "sub-01/ses-1", "sub-01"],
    "BraTS-GLI-00005": ["BraTS-GLI-00005-000", "BraTS-GLI-00005-101"],
    "BraTS-MEN-RT-0002": ["BraTS-MEN-RT-0002-1"],
    "BraTS-GoAT-00004": ["BraTS-GoAT-00004"],
    "BraTSReg_001": ["BraTSReg_001_00_0000", "BraTSReg_001_01_0106"],
    "Brats18_TCIA02_151": ["Brats18_TCIA02_151_1", "Brats18_TCIA02_151_2"],
    "Brats17_2013_10": ["Brats17_2013_10_1", "Brats17_2013_10"],
    "Patient-001": ["Patient-001_week-000-1", "Patient-001_week-044", "Patient-001/week-000-2"],
    "PatientID_0003": ["PatientID_0003_Timepoint_1", "PatientID_0003_Timepoint_5"],
    "RHUH-0001": ["RHUH-0001_0", "RHUH-0001_2", "RHUH-0001/1"],
    "ReMIND-001": ["ReMIND-001_preop", "ReMIND-001_intraop"],
    "Burdenko-GBM-Progression-001": ["Burdenko-GBM-Progression-001_2011-03-04"],
    "YG_0A1B2C3D4E5F": ["YG_0A1B2C3D4E5F_2011-05-11", "YG_0A1B2C3D4E5F_2012-01-02"],
    "HF1010": ["HF1010_1996.01.01"],
    "P7": ids("""P7_baseline P7_followup P7-follow-up P7_pre P7_post P7_preop P7_post-op P7.t0 P7_tp1 P7_visit2 P7_v1
        P7_week12 P7_12weeks P7_month3 P7_day_0 P7_FU3m P7_2019-03-01 P7_20190301 P7_01.03.2019 P7_ses-1_run-2
        P7_time_point_2 P7_20190301T101112
        P7_2019-03-01_10-11 P7_praeop P7_baseline_20190301 P7_visit_012 P7_recurrence P7_session1"""),
    "Anna": ["Anna_baseline", "Anna_followup2", "Anna_visit1", "Anna_week12", "Anna_pre", "Anna_post"],
}
OTHERS = ids("""patient_1 patient_2 patient-3 case_001 case_010 BraTS20_Training_001 BraTS20_Training_002
    BraTS2021_00001 BraTS2021_00002 BRATS_001 BRATS_002 EGD-0001 EGD-0002 Phantom_00001 Phantom_00002 12_1 12_2
    glioma_visit_001 glioma_visit_002 brain_scan_001 brain_scan_002 glioma_20190301 glioma_20190302 HGG_1 LGG_1
    Brats18_2013_1_1 Brats18_2013_2_1 GLI_001_GBM GLI_002_GBM post_001 post_002 C3L-00016 C3L-00017""")


@pytest.mark.parametrize("patient", ONE)
def test_the_scans_of_a_patient_share_the_name(patient):
    assert {patient_of(id) for id in ONE[patient]} == {patient}
    assert {key(patient_of(id.upper())) for id in ONE[patient]} == {key(patient)}


def test_two_patients_are_never_one():
    assert [patient_of(id) for id in OTHERS if scheme_of(id) is None] == [id for id in OTHERS if scheme_of(id) is None]
    assert len({key(patient_of(id)) for id in OTHERS}) == len(OTHERS)
    assert len({key(patient) for patient in ONE}) == len(ONE)


def test_every_scheme_is_reached_by_its_example():
    for scheme in SCHEMES:
        assert scheme_of(scheme.example) is scheme
        assert scheme.source


def test_a_name_that_is_one_persons_in_the_whole_world_is_told_from_one_of_a_folder():
    assert world_name("TCGA_02_0006_19960823") == world_name("tcga-02-0006_1997.01.02") is not None
    assert world_name("BraTS2021_00001") != world_name("BraTS2021_00002")
    for id in ("sub-01_ses-1", "P7_baseline", "Phantom_00001", "case_001", "Patient-001_week-000-1"):
        assert world_name(id) is None


def test_accents_and_letter_case_tell_nobody_apart():
    assert key("Mu\u0308ller") == key("m\u00dcLLER")
    assert key("A_1") != key("A-1")


def numbered(stem, number):
    return [f"{stem}_{index:03d}" for index in range(1, number + 1)]


@pytest.mark.parametrize(
    ("names", "group"),
    [
        (["1_1", "1_2", "2_1"], ["1_1", "1_2"]),
        (["smith_1", "smith_2", "jones_1"], ["smith_1", "smith_2"]),
        (["P7", "P7_2", "P8"], ["P7", "P7_2"]),
        (["p1-a", "p1-b", "p2-a"], ["p1-a", "p1-b"]),
        (["7a", "7b", "8"], ["7a", "7b"]),
        (["anna_20190301", "anna_20190401"], ["anna_20190301", "anna_20190401"]),
        (["anna_t0", "anna_t1", "bob_t0"], ["anna_t0", "anna_t1"]),
        (["pre_001", "post_001", "pre_002", "post_002"], ["post_001", "pre_001"]),
        (["P7_scan1", "P7_scan2", "P8_scan1"], ["P7_scan1", "P7_scan2"]),
        (["P7_early", "P7_late", "P8_early"], ["P7_early", "P7_late"]),
        (["P7_1st", "P7_2nd", "P8_1st"], ["P7_1st", "P7_2nd"]),
        (["P7_tp1_reg", "P7_tp2_reg", "P8_tp1_reg"], ["P7_tp1_reg", "P7_tp2_reg"]),
        (["P7_20190301_101112", "P7_20200301_101530", "P8"], ["P7_20190301_101112", "P7_20200301_101530"]),
        ([*numbered("site1", 30), *numbered("site2", 30)], numbered("site1", 30)),
    ],
)
def test_names_that_could_hide_time_points_are_found(names, group):
    assert hidden_time_points(names)[0] == group


@pytest.mark.parametrize(
    "names",
    [
        numbered("case", 100),
        ["patient_1", "patient_2"],
        ["001", "002", "003", "0011"],
        [*numbered("HGG", 200), *numbered("LGG", 75)],
        ["smith", "jones", "AAB", "AAC"],
        [id for own in ONE.values() for id in own],
        [],
    ],
)
def test_plain_enumerations_and_known_schemes_are_not(names):
    assert hidden_time_points(names) == []


def test_an_enumeration_that_reads_like_visits_of_one_patient_is_told(tmp_path):
    for number in range(4):
        style(tmp_path, f"site2_v{number:02}")
    assert "all 4 cases are scans of one patient, site2. If they are not, write a table patients.csv" in " ".join(
        find_cases(tmp_path).notes
    )


def test_check_says_which_names_could_hide_time_points_and_names_the_remedy(tmp_path):
    for number, id in enumerate(("17_1", "17_2", "18_1")):
        style(tmp_path, id, IMAGE + number)
    told = " ".join(str(check(tmp_path, workers=1)).split())
    assert "17_1, 17_2 could be scans of one patient" in told
    assert "patients.csv with the columns case and patient" in told
    assert "3 cases of 3 patients" in told
    (tmp_path / "patients.csv").write_text("case,patient\n17_1,17\n17_2,17\n18_1,18\n")
    told = " ".join(str(check(tmp_path, workers=1)).split())
    assert "could be scans" not in told
    assert "3 cases of 2 patients" in told
    assert "patients.csv names the patients of 3 cases" in told


def with_table(folder, text, encoding="utf-8", name="patients.csv"):
    for id in ("A_1", "A_2", "B_1", "UPENN-GBM-00006_11", "UPENN-GBM-00006_21"):
        brats(folder, id)
    (folder / name).write_text(text, encoding)
    return folder


def patients(data):
    return {case.id: case.patient for case in find_cases(data).cases}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("name", ["patients.csv", "Patients.CSV"])
def test_a_table_says_who_is_one_patient_and_the_rest_keep_their_names(tmp_path, encoding, name):
    with_table(tmp_path, "Age, Case ,PATIENT\n5,a_1,Zo\u00eb\n6,A_2, zo\u00eb \n,,\n", encoding, name)
    assert patients(tmp_path) == {
        "A_1": "Zo\u00eb",
        "A_2": "Zo\u00eb",
        "B_1": "B_1",
        "UPENN-GBM-00006_11": "UPENN-GBM-00006",
        "UPENN-GBM-00006_21": "UPENN-GBM-00006",
    }
    (told,) = (note for note in find_cases(tmp_path).notes if "names the patients of 2 cases" in note)
    assert "3 cases follow from their names: B_1, UPENN-GBM-00006_11, UPENN-GBM-00006_21" in told


def test_a_table_wins_over_a_scheme_and_meets_it(tmp_path):
    with_table(tmp_path, "case,patient\nUPENN-GBM-00006_11,x\nA_1,upenn-gbm-00006\n")
    found = patients(tmp_path)
    assert found["UPENN-GBM-00006_11"] == "x"
    assert found["A_1"] == found["UPENN-GBM-00006_21"] != "x"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("case;patient\nA_1;A\n", r"'case;patient'.*divided by a comma"),
        ("id,patient\nA_1,A\n", r"columns case and patient"),
        ("case,patient\n", "no row"),
        ("", "no row"),
        ("case,patient\nA_1,\n", r"row 1: the case 'A_1' and the patient ''"),
        ("case,patient\nB_1,B\n,A\n", r"row 2: the case '' and the patient 'A'"),
        ("case,patient\nA_1,Smith, John\n", "and more"),
        ("case,patient\nA_1,A\na_1,B\n", r"gives A_1 to A and to B"),
        ("case,patient\nA_1,A\nC_1,C\n", r"names 1 case that the folder does not hold \(C_1\)"),
    ],
)
def test_a_table_that_cannot_be_used_is_a_sentence(tmp_path, text, told):
    with_table(tmp_path, text)
    with pytest.raises(UnetlibError, match=rf"patients\.csv.*{told}"):
        find_cases(tmp_path)


def test_a_table_in_another_encoding_is_a_sentence(tmp_path):
    with_table(tmp_path, "case,patient\nA_1,Zo\u00eb\n", "latin-1")
    with pytest.raises(UnetlibError, match=r"patients\.csv cannot be read.*UTF-8 with the columns case and patient"):
        find_cases(tmp_path)


def test_a_line_twice_is_no_contradiction(tmp_path):
    assert patients(with_table(tmp_path, "case,patient\nA_1,A\nA_1,a\n"))["A_1"] == "A"


def test_of_several_tables_the_highest_counts_and_of_equals_none(tmp_path):
    with_table(tmp_path / "a", "case,patient\nA_1,low\n")
    assert patients(tmp_path)["A_1"] == "low"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "patients.csv").write_text("case,patient\nA_1,other\n")
    with pytest.raises(UnetlibError, match="two tables of patients"):
        find_cases(tmp_path)
    (tmp_path / "patients.csv").write_text("case,patient\nA_1,high\n")
    assert patients(tmp_path)["A_1"] == "high"


def test_a_table_in_an_archive_counts(tmp_path):
    folder = with_table(tmp_path / "data", "case,patient\nA_1,A\nA_2,A\n")
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.add(folder, "data")
    assert patients(tmp_path / "data.tar") == patients(folder)
    assert patients(folder)["A_2"] == "A"

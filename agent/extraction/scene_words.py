"""Words in file names that name no scene: scene_names.py leaves them out."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# They count the parts of one scene, or its repetitions: "take 2". A number after them can be left out.
PIECES = _words("""
    clip clips part take trial seg segment rep repetition try attempt chunk fragment piece chapter cut sample instance
    no nr num number video videos vid movie mov film rec recording record session scene seq sequence episode idx index
    teil aufnahme szene versuch essai prueba toma
""")
# They view one scene from several sides: "cam1".
VIEWS = _words("cam camera kamera camara ch channel view kinect angle lens stream sensor nvr dvr")
# Places, times and portions that hold many scenes: "ward3", "day1", "set1".
CONTAINERS = _words("""
    set batch day date week month year ward site hospital clinic klinik station lab home house center centre study
    project dataset data version disk group folder dir subset split fold train training test testing val valid
    validation dev eval class label action activity act event type kind category cat level fps
""")
# They describe a file, its sort of person, or how an action is done.
GENERIC = _words("""
    img image pic photo dsc dscn dscf mvi pxl gopro gopr dji win mah whatsapp wa screen capture screenrecording
    screencast file row new old untitled unnamed final export output input raw orig original edit edited cropped resized
    small compressed converted uncomp copy copia kopie copie duplicate demo example anon anonymized anonymised
    rgb depth color colour gray grey ir infrared thermal skeleton hd uhd fhd pro main sd lq hq avi mp4 webm mkv wmv h264
    h265 x264 x265 hevc mpeg mpeg4 xvid divx vp9 av1 mixed mix various misc other others all any unknown unlabelled
    unlabeled normal abnormal anomaly positive negative pos neg true false real fake simulated sim slow fast quick
    quickly slowly left right front back rear side top bottom up down forward backward forwards backwards indoor outdoor
    inside outside night morning evening afternoon noon light dark near far close wide long short single double first
    second third one two three good bad standing sitting lying adult male female man woman boy girl elderly young people
    persons person subject patient human user motion movement moving static a an the of to from in into on onto off at
    by for with without and or not is as bed chair floor sofa stairs tmp temp bewegung neu alt
""")
EMPTY = PIECES | VIEWS | CONTAINERS | GENERIC
COUNTER_LETTERS = frozenset("cvrtkednx")  # c01, take t3, repetition r2, example e01

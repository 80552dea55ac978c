"""Older encodings are told by real sentences, of the Declaration of Human Rights and more."""

import io
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygnet.corpus.read.decode import TextStream, guess_encoding
from cygnet.corpus.read.encodings import SINGLE_BYTE, single_byte_encoding
from cygnet.corpus.read.problems import Problems

CENTRAL = ("cp1250", "iso8859_2", "cp852")
WESTERN = ("cp1252", "cp850", "cp437")
NORDIC = ("cp1252", "cp850")
CYRILLIC = ("cp1251", "cp866", "iso8859_5")
SENTENCES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cs": (CENTRAL, (
        "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv.",
        "Jsou nadáni rozumem a svědomím a mají spolu jednat v duchu bratrství.",
        "Na jaře hnízdí labutě u pomalých řek, kde je dost mělké vody a rákosí.",
        "Nikdo nesmí být držen v otroctví nebo nevolnictví.",
    )),
    "pl": (CENTRAL, (
        "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw.",
        "Są oni obdarzeni rozumem i sumieniem i powinni postępować wobec innych w duchu "
        "braterstwa.",
        "Łabędzie gnieżdżą się wiosną nad wolno płynącymi rzekami i na jeziorach.",
        "Każdy człowiek ma prawo do życia, wolności i bezpieczeństwa swej osoby.",
    )),
    "hu": (CENTRAL, (
        "Minden emberi lény szabadon születik és egyenlő méltósága és joga van.",
        "Az emberek, ésszel és lelkiismerettel bírván, egymással szemben testvéri szellemben kell "
        "hogy viseltessenek.",
        "A hattyúk tavasszal a lassú folyók mentén költenek, ahol elegendő a víz és a nád.",
        "Minden személynek joga van az élethez, a szabadsághoz és a személyi biztonsághoz.",
    )),
    "sk": (CENTRAL, (
        "Všetci ľudia sa rodia slobodní a sebe rovní, čo sa týka ich dôstojnosti a práv.",
        "Sú obdarení rozumom a majú navzájom jednať v bratskom duchu.",
        "Labute hniezdia na jar pri pomalých riekach, kde je dosť plytkej vody a tŕstia.",
        "Každý má právo na život, slobodu a osobnú bezpečnosť.",
    )),
    "hr": (CENTRAL, (
        "Sva ljudska bića rađaju se slobodna i jednaka u dostojanstvu i pravima.",
        "Ona su obdarena razumom i sviješću i trebaju jedna prema drugima postupati u duhu "
        "bratstva.",
        "Labudovi se u proljeće gnijezde uz spore rijeke gdje ima dovoljno plićaka i šaša.",
        "Svatko ima pravo na život, slobodu i osobnu sigurnost, a nitko se ne smije držati u "
        "ropstvu.",
    )),
    "sl": (CENTRAL, (
        "Vsi ljudje se rodijo svobodni in imajo enako dostojanstvo in enake pravice.",
        "Obdarjeni so z razumom in vestjo in bi morali ravnati drug z drugim kakor bratje.",
        "Labodi spomladi gnezdijo ob počasnih rekah, kjer je dovolj plitvine in ločja za zaščito.",
        "Vsakdo ima pravico do življenja, do prostosti in do osebne varnosti.",
    )),
    "ro": (("cp1250", "iso8859_2"), (
        "Toate fiinţele umane se nasc libere şi egale în demnitate şi în drepturi.",
        "Ele sunt înzestrate cu raţiune şi conştiinţă şi trebuie să se comporte unele faţă "
        "de altele "
        "în spiritul fraternităţii.",
        "Lebedele îşi fac cuibul primăvara lângă râurile domoale, unde găsesc apă puţin adâncă.",
        "Orice fiinţă umană are dreptul la viaţă, la libertate şi la securitatea persoanei sale.",
    )),
    "de": (WESTERN, (
        "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
        "Sie sind mit Vernunft und Gewissen begabt und sollen einander im Geiste der "
        "Brüderlichkeit "
        "begegnen.",
        "Schwäne brüten im Frühjahr an langsamen Flüssen, wo es genügend flaches Wasser gibt.",
        "Für zwölf Gäste genügen drei große Töpfe voll süßer Klöße.",
    )),
    "fr": (WESTERN, (
        "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
        "Ils sont doués de raison et de conscience et doivent agir les uns envers les autres dans "
        "un esprit de fraternité.",
        "Au printemps, le cygne niche près des rivières où l'eau est calme et peu profonde, "
        "là-bas.",
        "Nul ne sera tenu en esclavage; l'esclavage et la traite sont interdits à jamais.",
    )),
    "es": (WESTERN, (
        "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados "
        "como están "
        "de razón y conciencia, deben comportarse fraternalmente los unos con los otros.",
        "En primavera el cisne anida junto a ríos tranquilos; en otoño migra hacia el sur.",
        "¿Quién construyó aquel pequeño puente? El niño no lo sabía, ni su compañera tampoco.",
        "Todo individuo tiene derecho a la vida, a la libertad y a la seguridad de su persona.",
    )),
    "pt": (NORDIC, (
        "Todos os seres humanos nascem livres e iguais em dignidade e em direitos.",
        "Dotados de razão e de consciência, devem agir uns para com os outros em espírito de "
        "fraternidade.",
        "Na primavera, os cisnes fazem ninho junto aos rios calmos, onde há água e vegetação.",
        "Ninguém será mantido em escravatura ou em servidão; a escravatura e o trato são "
        "proibidos.",
    )),
    "sv": (WESTERN, (
        "Alla människor är födda fria och lika i värde och rättigheter.",
        "De är utrustade med förnuft och samvete och bör handla gentemot varandra i en anda av "
        "broderskap.",
        "Svanar häckar på våren vid långsamma åar, där vattnet är grunt och vassen tät.",
        "Var och en har rätt till liv, frihet och personlig säkerhet.",
    )),
    "da": (NORDIC, (
        "Alle mennesker er født frie og lige i værdighed og rettigheder.",
        "De er udstyret med fornuft og samvittighed, og de bør handle mod hverandre i en "
        "broderskabets ånd.",
        "Svaner yngler om foråret ved rolige åer, hvor vandet er lavt og rørene står tæt.",
        "Enhver har ret til liv, frihed og personlig sikkerhed; ingen må holdes i slaveri.",
    )),
    "fi": (WESTERN, (
        "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan.",
        "Heille on annettu järki ja omatunto, ja heidän on toimittava toisiaan kohtaan veljeyden "
        "hengessä.",
        "Joutsenet pesivät keväällä hitaiden jokien äärellä, missä vesi on matalaa.",
        "Jokaisella on oikeus elämään, vapauteen ja henkilökohtaiseen turvallisuuteen.",
    )),
    "lt": (("cp1257",), (
        "Visi žmonės gimsta laisvi ir lygūs savo orumu ir teisėmis.",
        "Jiems suteiktas protas ir sąžinė ir jie turi elgtis vienas kito atžvilgiu kaip broliai.",
        "Gulbės pavasarį peri prie lėtų upių, kur yra pakankamai seklaus vandens ir nendrių.",
        "Kiekvienas žmogus turi teisę į gyvybę, laisvę ir asmens saugumą.",
    )),
    "lv": (("cp1257",), (
        "Visi cilvēki piedzimst brīvi un vienlīdzīgi savā pašcieņā un tiesībās.",
        "Viņi ir apveltīti ar saprātu un sirdsapziņu, un viņiem jāizturas citam pret citu brālības "
        "garā.",
        "Gulbji pavasarī ligzdo pie lēnām upēm, kur ir pietiekami daudz sekla ūdens un niedru.",
    )),
    "tr": (("cp1254",), (
        "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.",
        "Akıl ve vicdana sahiptirler ve birbirlerine karşı kardeşlik zihniyeti ile hareket "
        "etmelidirler.",
        "Kuğular ilkbaharda suyun sığ olduğu yavaş ırmakların kıyısında yuva yapar.",
        "Hiç kimse kölelik veya kulluk altında bulundurulamaz.",
    )),
    "ru": ((*CYRILLIC, "koi8_r"), (
        "Все люди рождаются свободными и равными в своем достоинстве и правах.",
        "Они наделены разумом и совестью и должны поступать в отношении друг друга в духе "
        "братства.",
        "Лебеди весной гнездятся у медленных рек, где вдоволь мелкой воды и тростника.",
        "Каждый человек имеет право на жизнь, на свободу и на личную неприкосновенность.",
    )),
    "uk": (("cp1251", "koi8_u"), (
        "Всі люди народжуються вільними і рівними у своїй гідності та правах.",
        "Вони наділені розумом і совістю і повинні діяти у відношенні один до одного в дусі "
        "братерства.",
        "Лебеді навесні гніздяться біля повільних річок, де вдосталь мілкої води й очерету.",
    )),
    "bg": (CYRILLIC, (
        "Всички хора се раждат свободни и равни по достойнство и права.",
        "Те са надарени с разум и съвест и следва да се отнасят помежду си в дух на братство.",
        "Лебедите гнездят през пролетта край бавни реки, където има достатъчно плитка вода.",
    )),
    "el": (("cp1253", "iso8859_7"), (
        "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
        "Είναι προικισμένοι με λογική και συνείδηση, και οφείλουν να συμπεριφέρονται μεταξύ "
        "τους με "
        "πνεύμα αδελφοσύνης.",
        "Ο κύκνος φωλιάζει την άνοιξη δίπλα σε ήρεμα ποτάμια με ρηχό νερό.",
    )),
    "he": (("cp1255",), (
        "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
        "כולם חוננו בתבונה ובמצפון, לפיכך חובה עליהם לנהוג איש ברעהו ברוח של אחווה.",
        "הברבור מקנן באביב ליד נהרות שקטים שבהם המים רדודים.",
    )),
    "ar": (("cp1256",), (
        "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.",
        "وقد وهبوا عقلا وضميرا وعليهم أن يعامل بعضهم بعضا بروح الإخاء.",
        "لكل فرد الحق في الحياة والحرية وسلامة شخصه.",
    )),
    "en": (("cp1252",), (
        "“All human beings are born free and equal,” she said – “in dignity and rights.”",
        "It’s a café on the swan’s river… and the water isn’t deep there; that’s why they come.",
        "The naïve reader’s résumé cost €50 in the 1990’s — or so we’re told.",
    )),
}  # fmt: skip
CASES = [(name, encoding) for name, (encodings, _) in SENTENCES.items() for encoding in encodings]


def read(data: bytes) -> tuple[str, Problems]:
    problems = Problems()
    return "".join(TextStream(io.BytesIO(data), "f.txt", problems).chunks()), problems


@pytest.mark.parametrize(("language", "encoding"), CASES)
def test_a_page_of_sentences_is_read_as_what_it_is(language: str, encoding: str) -> None:
    text = "\n".join(SENTENCES[language][1]) + "\n"
    found, problems = read(text.encode(encoding))
    assert found == text
    assert problems.count("other encoding") == 1 and len(problems.kinds) == 1


@given(st.sampled_from(CASES), st.data())
def test_some_sentences_in_any_order_are_enough(case: tuple[str, str], data: st.DataObject) -> None:
    language, encoding = case
    sentences = SENTENCES[language][1]
    chosen = data.draw(st.lists(st.sampled_from(sentences), min_size=3, unique=True))
    text = data.draw(st.sampled_from(["\n", "\r\n", " "])).join(chosen) + "\n"
    around = data.draw(st.sampled_from(["", "x = 1;\n", "# plain ASCII, as code and mail have\n"]))
    found, _ = read((around * 3 + text + around).encode(encoding))
    assert found == (around * 3 + text + around).replace("\r\n", "\n")


@pytest.mark.parametrize("language", ["de", "fr", "es", "pt", "sv", "da", "fi", "en"])
def test_single_sentences_of_windows_latin_are_never_taken_for_another(language: str) -> None:
    for sentence in SENTENCES[language][1]:
        assert read(sentence.encode("cp1252"))[0] == sentence


def test_a_word_alone_is_windows_latin() -> None:
    for word in ("café", "Zoë", "señor", "über", "façade", "Ångström"):
        assert read(f"{word}\n".encode("cp1252"))[0] == f"{word}\n"


JAPANESE = (
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "白鳥は大きな水鳥で、春になると湖や流れの緩やかな川のほとりに巣を作ります。",
)
KOREAN = "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다."


@pytest.mark.parametrize("encoding", ["iso2022_jp", "iso2022_jp_1", "iso2022_jp_ext"])
@pytest.mark.parametrize("text", [*JAPANESE, "Subject: 白鳥\n\nOnly a word.\n" * 50])
def test_iso_2022_is_told_by_its_escapes(text: str, encoding: str) -> None:
    found, problems = read(text.encode(encoding))
    assert found == text
    assert "iso2022_jp" in problems.kinds["other encoding"].places[0][1]


def test_iso_2022_of_korea_and_text_across_blocks() -> None:
    assert read((KOREAN * 3).encode("iso2022_kr"))[0] == KOREAN * 3
    long = "\n".join(JAPANESE) * 3_000
    assert read(long.encode("iso2022_jp"))[0] == long


def test_escapes_of_a_terminal_are_no_iso_2022() -> None:
    colours = b"\x1b[1mbold\x1b[0m and \x1b[31mred\x1b[0m \x1b(B text\n" * 9
    assert guess_encoding(colours) == "utf-8"


EAST_ASIA = {
    "gb18030": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心。",
    "big5": "人人生而自由，在尊嚴和權利上一律平等。他們賦有理性和良心。",
    "shift_jis": JAPANESE[0],
    "euc_jp": JAPANESE[1],
    "euc_kr": KOREAN,
}


@pytest.mark.parametrize("encoding", EAST_ASIA)
@pytest.mark.parametrize("times", [1, 20])
def test_text_of_east_asia_is_in_no_encoding_of_single_bytes(encoding: str, times: int) -> None:
    assert single_byte_encoding((EAST_ASIA[encoding] * times).encode(encoding)) is None


@given(st.binary(max_size=300))
def test_any_bytes_are_judged(data: bytes) -> None:
    found = single_byte_encoding(data)
    assert found is None or found in SINGLE_BYTE


def test_noise_is_in_no_encoding() -> None:
    draw = random.Random(0)
    for _ in range(20):
        assert single_byte_encoding(draw.randbytes(500)) is None

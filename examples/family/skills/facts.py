"""Facts from tables: the common ones are easy, the long tail is hard."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from examples.family.skills.common import Record, polite, user

# "country=capital"; the order goes from what is asked most to the long tail.
_CAPITALS = """
France=Paris|Italy=Rome|Spain=Madrid|Germany=Berlin|Japan=Tokyo|England=London|Greece=Athens
Egypt=Cairo|Portugal=Lisbon|Austria=Vienna|Ireland=Dublin|Norway=Oslo|Sweden=Stockholm
China=Beijing|Russia=Moscow|Poland=Warsaw|Canada=Ottawa|Cuba=Havana|Peru=Lima|India=New Delhi
Denmark=Copenhagen|Finland=Helsinki|Hungary=Budapest|Belgium=Brussels|Turkey=Ankara|Kenya=Nairobi
Mexico=Mexico City|Argentina=Buenos Aires|Brazil=Brasilia|Australia=Canberra|Thailand=Bangkok
Ukraine=Kyiv|Romania=Bucharest|Bulgaria=Sofia|Croatia=Zagreb|Iran=Tehran|Iraq=Baghdad
South Korea=Seoul|Vietnam=Hanoi|Chile=Santiago|Colombia=Bogota|Venezuela=Caracas|Morocco=Rabat
Iceland=Reykjavik|Switzerland=Bern|Netherlands=Amsterdam|Czechia=Prague|Serbia=Belgrade
Slovakia=Bratislava|Slovenia=Ljubljana|Nigeria=Abuja|Ethiopia=Addis Ababa|Ghana=Accra
Philippines=Manila|Indonesia=Jakarta|Malaysia=Kuala Lumpur|New Zealand=Wellington|Nepal=Kathmandu
Pakistan=Islamabad|Bangladesh=Dhaka|Saudi Arabia=Riyadh|Syria=Damascus|Lebanon=Beirut|Jordan=Amman
Estonia=Tallinn|Latvia=Riga|Lithuania=Vilnius|Belarus=Minsk|Moldova=Chisinau|Georgia=Tbilisi
Armenia=Yerevan|Azerbaijan=Baku|Kazakhstan=Astana|Uzbekistan=Tashkent|Turkmenistan=Ashgabat
Kyrgyzstan=Bishkek|Tajikistan=Dushanbe|Mongolia=Ulaanbaatar|Afghanistan=Kabul|Bhutan=Thimphu
Cambodia=Phnom Penh|Laos=Vientiane|Myanmar=Naypyidaw|Fiji=Suva|Samoa=Apia|Tonga=Nuku'alofa
Uruguay=Montevideo|Paraguay=Asuncion|Ecuador=Quito|Guyana=Georgetown|Suriname=Paramaribo
Panama=Panama City|Costa Rica=San Jose|Nicaragua=Managua|Honduras=Tegucigalpa|Belize=Belmopan
Guatemala=Guatemala City|El Salvador=San Salvador|Jamaica=Kingston|Haiti=Port-au-Prince
Bahamas=Nassau|Barbados=Bridgetown|Tunisia=Tunis|Algeria=Algiers|Libya=Tripoli|Sudan=Khartoum
Uganda=Kampala|Tanzania=Dodoma|Rwanda=Kigali|Burundi=Gitega|Zambia=Lusaka|Zimbabwe=Harare
Botswana=Gaborone|Namibia=Windhoek|Angola=Luanda|Mozambique=Maputo|Madagascar=Antananarivo
Malawi=Lilongwe|Somalia=Mogadishu|Eritrea=Asmara|Djibouti=Djibouti|Senegal=Dakar|Mali=Bamako
Niger=Niamey|Chad=N'Djamena|Cameroon=Yaounde|Gabon=Libreville|Togo=Lome|Benin=Porto-Novo
Liberia=Monrovia|Sierra Leone=Freetown|Guinea=Conakry|Gambia=Banjul|Mauritania=Nouakchott
Albania=Tirana|North Macedonia=Skopje|Montenegro=Podgorica|Kosovo=Pristina|Malta=Valletta
Cyprus=Nicosia|Luxembourg=Luxembourg|Monaco=Monaco|Andorra=Andorra la Vella|Liechtenstein=Vaduz
Qatar=Doha|Bahrain=Manama|Oman=Muscat|Yemen=Sanaa|Kuwait=Kuwait City|Lesotho=Maseru
Mauritius=Port Louis|Seychelles=Victoria|Maldives=Male|Brunei=Bandar Seri Begawan|Palau=Ngerulmud
"""
# "element=symbol", in the order of the atomic number from 1 on.
_ELEMENTS = """
Hydrogen=H|Helium=He|Lithium=Li|Beryllium=Be|Boron=B|Carbon=C|Nitrogen=N|Oxygen=O|Fluorine=F
Neon=Ne|Sodium=Na|Magnesium=Mg|Aluminium=Al|Silicon=Si|Phosphorus=P|Sulfur=S|Chlorine=Cl|Argon=Ar
Potassium=K|Calcium=Ca|Scandium=Sc|Titanium=Ti|Vanadium=V|Chromium=Cr|Manganese=Mn|Iron=Fe
Cobalt=Co|Nickel=Ni|Copper=Cu|Zinc=Zn|Gallium=Ga|Germanium=Ge|Arsenic=As|Selenium=Se|Bromine=Br
Krypton=Kr|Rubidium=Rb|Strontium=Sr|Yttrium=Y|Zirconium=Zr|Niobium=Nb|Molybdenum=Mo|Technetium=Tc
Ruthenium=Ru|Rhodium=Rh|Palladium=Pd|Silver=Ag|Cadmium=Cd|Indium=In|Tin=Sn|Antimony=Sb
Tellurium=Te|Iodine=I|Xenon=Xe|Caesium=Cs|Barium=Ba|Lanthanum=La|Cerium=Ce|Praseodymium=Pr
Neodymium=Nd|Promethium=Pm|Samarium=Sm|Europium=Eu|Gadolinium=Gd|Terbium=Tb|Dysprosium=Dy
Holmium=Ho|Erbium=Er|Thulium=Tm|Ytterbium=Yb|Lutetium=Lu|Hafnium=Hf|Tantalum=Ta|Tungsten=W
Rhenium=Re|Osmium=Os|Iridium=Ir|Platinum=Pt|Gold=Au|Mercury=Hg|Thallium=Tl|Lead=Pb|Bismuth=Bi
Polonium=Po|Astatine=At|Radon=Rn|Francium=Fr|Radium=Ra|Actinium=Ac|Thorium=Th|Protactinium=Pa
Uranium=U
"""
_EASY_ELEMENTS = "Hydrogen Helium Carbon Nitrogen Oxygen Iron Gold Silver".split()
# "work=author"
_AUTHORS = """
Hamlet=William Shakespeare|Macbeth=William Shakespeare|Emma=Jane Austen|Oliver Twist=Charles Dickens
Dracula=Bram Stoker|Frankenstein=Mary Shelley|1984=George Orwell|Animal Farm=George Orwell
The Hobbit=J. R. R. Tolkien|Don Quixote=Miguel de Cervantes|War and Peace=Leo Tolstoy
Faust=Johann Wolfgang von Goethe|The Odyssey=Homer|Moby-Dick=Herman Melville
Pride and Prejudice=Jane Austen|Anna Karenina=Leo Tolstoy|Les Miserables=Victor Hugo
The Trial=Franz Kafka|Ulysses=James Joyce|Candide=Voltaire|The Stranger=Albert Camus
Jane Eyre=Charlotte Bronte|Wuthering Heights=Emily Bronte|Treasure Island=Robert Louis Stevenson
Crime and Punishment=Fyodor Dostoevsky|The Idiot=Fyodor Dostoevsky|Brave New World=Aldous Huxley
The Great Gatsby=F. Scott Fitzgerald|Lolita=Vladimir Nabokov|Middlemarch=George Eliot
The Divine Comedy=Dante Alighieri|The Aeneid=Virgil|Madame Bovary=Gustave Flaubert
The Time Machine=H. G. Wells|Little Women=Louisa May Alcott|Walden=Henry David Thoreau
The Jungle Book=Rudyard Kipling|Peter Pan=J. M. Barrie|Siddhartha=Hermann Hesse
The Magic Mountain=Thomas Mann|The Cherry Orchard=Anton Chekhov|Germinal=Emile Zola
A Doll's House=Henrik Ibsen|Dead Souls=Nikolai Gogol|Things Fall Apart=Chinua Achebe
The Waves=Virginia Woolf|Lord Jim=Joseph Conrad|Gulliver's Travels=Jonathan Swift
Robinson Crusoe=Daniel Defoe|Paradise Lost=John Milton|Ivanhoe=Walter Scott
The Tin Drum=Gunter Grass|Pygmalion=George Bernard Shaw|Dubliners=James Joyce
"""
# "country=currency"
_CURRENCIES = """
Japan=yen|China=yuan|India=rupee|Russia=rouble|Poland=zloty|Turkey=lira|Mexico=peso|Sweden=krona
France=euro|Switzerland=franc|Norway=krone|Denmark=krone|Hungary=forint|Czechia=koruna
South Korea=won|Thailand=baht|Brazil=real|Israel=shekel|South Africa=rand|Vietnam=dong
Indonesia=rupiah|Malaysia=ringgit|Ukraine=hryvnia|Kenya=shilling|Nigeria=naira|Peru=sol
Romania=leu|Bulgaria=euro|Serbia=dinar|Georgia=lari|Armenia=dram|Kazakhstan=tenge
Mongolia=tugrik|Ghana=cedi|Ethiopia=birr|Zambia=kwacha|Botswana=pula|Angola=kwanza
Bangladesh=taka|Myanmar=kyat|Laos=kip|Cambodia=riel|Guatemala=quetzal|Honduras=lempira
Paraguay=guarani|Costa Rica=colon|Albania=lek|Azerbaijan=manat|Morocco=dirham|Iran=rial
"""
_OPPOSITES = """
hot=cold|big=small|up=down|day=night|fast=slow|high=low|old=young|rich=poor|full=empty|hard=soft
early=late|open=closed|wet=dry|long=short|near=far|left=right|light=dark|happy=sad|strong=weak
true=false|first=last|buy=sell|win=lose|love=hate|push=pull|begin=end|wide=narrow|deep=shallow
"""
_YOUNG = """
cat=kitten|dog=puppy|cow=calf|horse=foal|sheep=lamb|pig=piglet|duck=duckling|goat=kid|bear=cub
lion=cub|hen=chick|frog=tadpole|deer=fawn|goose=gosling|swan=cygnet|kangaroo=joey|owl=owlet
hare=leveret|eel=elver|eagle=eaglet|seal=pup|whale=calf
"""
_COMMON = """
How many days does a week have=7|How many months does a year have=12
How many hours does a day have=24|How many legs does a spider have=8
How many sides does a triangle have=3|How many sides does a hexagon have=6
How many legs does an insect have=6|How many minutes does an hour have=60
What colour is grass=green|What colour is the clear sky=blue|What colour is snow=white
What is the largest planet=Jupiter|What is the closest planet to the Sun=Mercury
What is the largest ocean=Pacific|What is the longest month name=September
What is frozen water called=ice|What do bees make=honey|Which planet is the red planet=Mars
How many continents are there=7|What is the first month=January|What is the last month=December
"""


@dataclass(frozen=True)
class _Fact:
    """One fact: ways to ask for it and the answer."""

    asks: tuple[str, ...]
    answer: str


def _pairs(table: str) -> list[tuple[str, str]]:
    entries = table.replace("\n", "|").strip("|").split("|")
    return [(left, right) for left, _, right in (entry.partition("=") for entry in entries)]


def _fill(forms: tuple[str, ...], x: str) -> tuple[str, ...]:
    return tuple(form.format(x=x) for form in forms)


_ASK_CAPITAL = (
    "What is the capital of {x}?",
    "What's the capital of {x}?",
    "Name the capital of {x}.",
    "Which city is the capital of {x}?",
    "Tell me the capital of {x}.",
    "capital of {x}",
    "{x}: what is its capital?",
    "Do you know the capital of {x}?",
)
_ASK_COUNTRY = (
    "{x} is the capital of which country?",
    "Which country has the capital {x}?",
    "Name the country whose capital is {x}.",
    "Of which country is {x} the capital?",
)
_ASK_SYMBOL = (
    "What is the chemical symbol of {x}?",
    "What is the symbol for {x}?",
    "Name the chemical symbol for {x}.",
    "Which symbol does the element {x} have?",
    "symbol of {x}",
)
_ASK_ATOMIC = (
    "What is the atomic number of {x}?",
    "Which atomic number does {x} have?",
    "Name the atomic number of {x}.",
    "Tell me the atomic number of {x}.",
)
_ASK_AUTHOR = (
    "Who wrote {x}?",
    "Who is the author of {x}?",
    "Name the author of {x}.",
    "{x} was written by whom?",
    "Which author wrote {x}?",
)
_ASK_MONEY = (
    "What is the currency of {x}?",
    "Which currency is used in {x}?",
    "Name the currency of {x}.",
    "What money do people use in {x}?",
)
_ASK_OPPOSITE = (
    'What is the opposite of "{x}"?',
    "What is the opposite of {x}?",
    "Name the opposite of {x}.",
    "opposite of {x}",
    "Give me the opposite of {x}.",
)
_ASK_YOUNG = (
    "What is a young {x} called?",
    "What do you call a baby {x}?",
    "Name the young of a {x}.",
    "A young {x} is called what?",
)
_ASK_COMMON = ("{x}?", "{x}", "Do you know: {x}?", "Quick question: {x}?", "Tell me: {x}?", "{x}??")


def _capital_facts(pairs: list[tuple[str, str]], reverse: bool) -> list[_Fact]:
    facts = [_Fact(_fill(_ASK_CAPITAL, country), city) for country, city in pairs]
    if reverse:
        facts += [_Fact(_fill(_ASK_COUNTRY, city), country) for country, city in pairs]
    return facts


def _build() -> dict[str, list[list[_Fact]]]:
    """Return by level the groups of facts; a group is drawn first, then a fact in it."""
    capitals, money = _pairs(_CAPITALS), _pairs(_CURRENCIES)
    authors, young = _pairs(_AUTHORS), _pairs(_YOUNG)
    symbols = [(name.lower(), symbol) for name, symbol in _pairs(_ELEMENTS)]
    easy_names = {name.lower() for name in _EASY_ELEMENTS}
    numbered = [_Fact(_fill(_ASK_ATOMIC, n), str(i)) for i, (n, _) in enumerate(symbols, 1)]
    signs = [_Fact(_fill(_ASK_SYMBOL, n), s) for n, s in symbols]
    easy_signs = [f for f, (n, _) in zip(signs, symbols, strict=True) if n in easy_names]
    other_signs = [f for f, (n, _) in zip(signs, symbols, strict=True) if n not in easy_names]
    by = {
        "author": [_Fact(_fill(_ASK_AUTHOR, x), y) for x, y in authors],
        "money": [_Fact(_fill(_ASK_MONEY, x), y) for x, y in money],
        "young": [_Fact(_fill(_ASK_YOUNG, x), y) for x, y in young],
        "opposite": [_Fact(_fill(_ASK_OPPOSITE, x), y) for x, y in _pairs(_OPPOSITES)],
        "common": [_Fact(_fill(_ASK_COMMON, x), y) for x, y in _pairs(_COMMON)],
    }
    return {
        "easy": [
            _capital_facts(capitals[:24], reverse=False),
            by["opposite"],
            by["common"],
            by["young"][:9] + easy_signs,
        ],
        "medium": [
            _capital_facts(capitals[24:60], reverse=False),
            _capital_facts(capitals[:24], reverse=True)[24:],
            other_signs[:28],
            by["author"][:18] + by["money"][:14] + by["young"][9:],
        ],
        "hard": [
            _capital_facts(capitals[60:], reverse=False),
            _capital_facts(capitals[24:60], reverse=True)[36:],
            other_signs[28:],
            numbered[:54],
            by["author"][18:],
            by["money"][14:],
        ],
    }


FACTS = _build()


def make(rng: Random, level: str) -> Record:
    """One fact of the level, asked in one of its ways; held back by that phrasing."""
    groups = FACTS[level]
    group = rng.choices(groups, weights=[len(g) for g in groups])[0]
    fact = rng.choice(group)
    text = rng.choice(fact.asks)
    return Record(
        "facts",
        level,
        [user(polite(rng, text))],
        fact.answer,
        "exact",
        fact.answer,
        max_tokens=24,
        # Without the politeness around it, so that "Please ..." makes no new phrasing.
        key=text.lower(),
    )

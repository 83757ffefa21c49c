"""What the dialogues are about: words, people, places, functions, questions beyond the model."""

WORDS = """
the a and of to in it is was on for with his they at be this from have or by one had not but what all were when we
there can an your which their said if do will each about how up out them then she many some so these would other into
has more her two like him see time could no make than first been its who now people my made over did down only way
find use may water long little very after words called just where most know get through back much before go good new
write our used me man too any day same right look think also around another came come work three word must because
does part even place well such here take why things help put years different away again off went old number great
tell men say small every found still between name should home big give air line set own under read last never us left
end along while might next sound below saw something thought both few those always looked show large often together
asked house world going want school important until form food keep children feet land side without boy once animals
life enough took four head above kind began almost live page got earth need far hand high year mother light parts
country father let night following picture being study second eyes soon times story boys since white days ever paper
hard near sentence better best across during today others however sure means knew try told young miles sun ways thing
whole hear example heard several change answer room sea against top turned learn point city play toward five using
himself usually money seen car morning body upon family later turn move face door cut done group true half red fish
plants living black eat short run book gave order open ground cold really table remember tree course front American
space inside ago sad early learned brought close nothing though idea before lived became add become grow draw yet less
wind behind cannot letter among able dog shown mean English rest perhaps certain six feel fire ready green built
special ran full town complete oh person hot anything hold state list stood hundred ten fast felt kept notice strong
voice probably area horse matter stand box start class piece surface river common stop am talk whether fine round dark
past ball girl road blue instead either held already warm gone finally summer understand moon animal mind outside power
problem winter deep heavy carefully follow beautiful everyone leave everything game system bring watch shell dry within
floor ice ship themselves begin fact third quite carry distance although sat possible heart real simple snow rain
suddenly leaves easy lay size wild weather miss pattern sky walked main someone center field stay itself boat question
wide least tiny hour happened foot care low else gold build glass rock tall alone bottom walk check fall poor map
friend language job music buy window mark hat bread apple orange pear lemon cup tea milk coffee sugar salt knife spoon
cat bird mouse lion tiger wolf bear fox owl duck goose frog snake bee ant spider cloud storm stone hill lake beach
garden flower grass leaf seed root farm barn bridge tower castle king queen clock lamp chair bed shelf wall roof
silver copper purple yellow brown grey pink bright quiet loud slow quick brave kind jumps sings sleeps hello over lazy
""".split()

NAMES = """
Ann Bob Clara David Emma Felix Grace Henry Ida Jack Karin Leo Maria Nils Olga Paul Quinn Rosa Sam Tina Ulrich Vera
Walter Xenia Yusuf Zoe Amir Bella Carlos Dana Elias Fatima Greta Hugo Irene Jonas Kira Liam Mona Noah Otto Priya Ravi
Sofia Tom Uma Victor Wendy Alice Ben Carol Dan Eve Frank Gina Hans Ivan Julia Ken Lucy Max Nina Oscar Petra
""".split()

CITIES = """
Paris London Berlin Rome Madrid Oslo Vienna Prague Lisbon Dublin Athens Warsaw Helsinki Bern Cairo Lagos Nairobi Tokyo
Osaka Seoul Beijing Delhi Mumbai Sydney Perth Toronto Boston Chicago Denver Dallas Miami Seattle Lima Quito Bogota
Santiago Havana Zurich Geneva Hamburg Munich Milan Turin Naples Porto Seville Lyon Nice Kyoto Austin Portland Montreal
""".split()

JOBS = "baker teacher doctor nurse pilot driver farmer painter singer writer lawyer cook judge miner sailor tailor".split()
COLORS = "red blue green yellow black white pink purple orange brown grey silver".split()
PETS = "cat dog fish bird horse rabbit mouse parrot snake turtle goat duck".split()
FOODS = "bread rice soup cake pizza pasta cheese salad fish apples honey eggs".split()
ITEMS = "milk bread coffee tea sugar salt butter cheese rice soap paper ink wood glass steel gold silver copper".split()
ROOMS = "kitchen bedroom office garage garden hall cellar attic bathroom library".split()
SKIES = "sunny cloudy rainy windy foggy snowy stormy clear".split()

VERBS = "find get look_up fetch read check make open start count load show send save pick list test move".split()
NOUNS = "boat lamp book file user order ticket room key map card photo song bill road ship seat plan note train".split()
PARAMETERS = "color size name city id count title place day kind level code label owner price".split()

IDENTITY = [
    "Who are you?", "What are you?", "What is your name?", "What's your name?", "Are you ChatGPT?", "Are you GPT-4?",
    "Which model are you?", "What model is this?", "What kind of model are you?", "Are you an AI?", "Are you a human?",
    "Are you a person?", "Are you real?", "Who am I talking to?", "Introduce yourself.", "Tell me about yourself.",
    "What is this?", "What is tessera?", "Are you gpt-oss?", "Are you a robot?", "Do you have a name?",
    "Who made you?", "How big are you?", "Are you a large language model?", "Describe yourself.", "Who is this?",
]

CAPABILITY = [
    "What can you do?", "Help", "What do you know?", "How can you help me?", "What are you good at?",
    "What can I ask you?", "What questions can you answer?", "What are your skills?", "List your skills.",
    "What are you able to do?", "What should I ask you?", "Can you help me?", "What tasks can you do?",
    "How do I use you?", "What is possible here?", "Give me an example of what you can do.", "What can't you do?",
    "What are your limits?", "What can you not do?",
]

GREETING = [
    "Hi", "Hello", "Hey", "Hi there", "Hello there", "Good morning", "Good evening", "Good day", "Hey there",
    "Greetings", "Hello!", "Hi!", "How are you?", "How are you today?", "Hello, how are you?", "Nice to meet you.",
    "What's up?", "Good afternoon",
]

TOPICS = """
cats|dogs|the moon|the sun|the sea|rain|snow|love|war|peace|music|history|physics|chemistry|biology|football|chess|art
|Rome|Paris|France|Germany|Spain|Japan|China|India|Brazil|Canada|Egypt|Kenya|Peru|Norway|Mars|Venus|Jupiter|the stars
|gravity|light|time|money|gold|iron|water|fire|air|earth|plants|trees|birds|fish|whales|horses|bees|ants|dinosaurs
|cars|trains|planes|ships|bridges|houses|castles|kings|queens|Einstein|Newton|Darwin|Shakespeare|Mozart|Napoleon|Plato
|computers|robots|the internet|Python|Rust|Linux|databases|compilers|GPUs|memory|networks|cooking|bread|cheese|coffee
|tea|wine|chocolate|apples|health|sleep|dreams|school|work|summer|winter|spring|autumn|Monday|Christmas|birthdays
|language|poetry|novels|films|painting|dance|travel|mountains|rivers|deserts|islands|volcanoes|earthquakes|storms
|the weather|clouds|the sky|rainbows|atoms|electrons|black holes|galaxies|numbers|prime numbers|geometry|algebra|logic
|happiness|fear|anger|friendship|family|children|democracy|economics|taxes|law|philosophy|religion|medicine|vaccines
|bacteria|the heart|the brain|bones|teeth|shoes|hats|clocks|mirrors|glass|paper|books|letters|maps
""".replace("\n", "").split("|")

BEYOND = [
    "Tell me about {}.", "Write a poem about {}.", "Write a story about {}.", "What is {}?", "Explain {}.", "Who was {}?",
    "What do you think about {}?", "Tell me a joke about {}.", "Write an essay about {}.", "Why is {} important?",
    "How does {} work?", "What is the history of {}?", "Give me five facts about {}.", "Translate {} into German.",
    "Translate {} to French.", "Write a song about {}.", "Where does {} come from?", "When was {} invented?",
    "Summarize a book about {}.", "What is the best book about {}?", "Is {} good or bad?", "Why do people like {}?",
    "Describe {} in one sentence.", "How much does {} cost?", "Draw a picture of {}.", "What is the meaning of {}?",
    "Write a Python program about {}.", "What is the opposite of {}?", "How old is {}?", "What color is {}?",
    "Who invented {}?", "What is the difference between {} and {}?", "Which is better, {} or {}?", "Compare {} with {}.",
    "How are {} and {} related?", "Write a letter about {}.", "Do you like {}?", "Can you teach me about {}?",
    "What is new in {}?", "Write a haiku about {}.", "Spell {}.", "Define {}.", "How do I learn about {}?",
    "What is the capital of {}?", "Where is {}?", "How far away is {}?", "Why is {} blue?", "What is {} made of?",
    "Recommend a film about {}.", "How many people like {}?", "Sort {} and {} by size.", "What rhymes with {}?",
]

BEYOND_NUMBERS = [
    "What is {} times {}?", "What is {} * {}?", "Multiply {} by {}.", "Divide {} by {}.", "What is {} / {}?",
    "{} x {}", "What is {} divided by {}?", "What is {} percent of {}?", "What is {} to the power of {}?", "{} * {}",
    "{} / {}", "What is the product of {} and {}?",
]
BEYOND_NUMBER = [
    "Is {} prime?", "What is the square root of {}?", "What happened in the year {}?", "Factor {}.", "Is {} even?",
    "Write {} in words.", "What is the square of {}?", "Convert {} miles to km.", "What is {} in binary?",
    "Write {} as a Roman numeral.", "What is the logarithm of {}?", "How many days are {} hours?",
]
BEYOND_PLAIN = [
    "Why is the sky blue?", "What time is it?", "What day is it today?", "What is the weather like?", "Tell me a joke.",
    "Write a poem.", "Tell me a story.", "Sing a song.", "Write some code.", "Solve this equation.", "Who won the war?",
    "What is the meaning of life?", "Translate this into French.", "Fix my code.", "Do my homework.", "Play a game.",
    "Who is the president?", "Where am I?", "What did I say?", "Make me a sandwich.", "Book a flight to Rome.",
    "Recommend a film.", "What should I eat?", "How tall is the tower?", "Write a commit message.", "Say something.",
]

INSTRUCTIONS = [
    "Answer briefly.", "Be polite.", "You are a helpful assistant.", "Be brief.", "Answer in English.",
    "You are a careful assistant.", "Only give the answer.", "Be precise.", "Help the user.", "Think before you answer.",
]

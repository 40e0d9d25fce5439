// Orders the pages that the search of the site finds. `docs/tools/site.py` puts this before Material's script, in the
// worker that answers. Material alone takes each word for a beginning of words ("in" finds "install"), finds no
// "quantize" for "quantization", and orders pages by their best section, whatever else of the question a page has.
{
  const SETUP = 0
  const QUERY = 2
  const RESULT = 3
  // A word in a heading counts as much as eight in the text. mkdocs.yml has what one in a title counts.
  const HEADING = 8
  // Common verbs and fillers tell less than nouns: "write a new task" is about a task.
  const COMMON = 0.25
  const COMMON_WORDS = (
    "add allow apply begin bring build call change check choose come compute create cut delete do does done edit " +
    "end find fix free get give go happen help keep kind know let like list look lot made make mean my need new off " +
    "open own part possible print put rate read remove replace run say see set show start stop support take tell " +
    "thing think time too try turn type understand use user want way what which without work write"
  ).split(" ")
  // Words that people type, and those that the pages use for the same.
  const SAME = [
    "annotate annotation label", "cite citation bibtex", "commercial company license", "docker container",
    "embedding feature vector", "forest tree", "gpu cuda graphics nvidia vram", "http rest api", "iphone ipad usdz polycam",
    "jupyter notebook colab", "las laz lidar", "mac macos apple m1 m2 m3", "memory oom ram", "mistake wrong",
    "picture plot visualize", "quickstart tutorial",
  ].map((words) => words.split(" "))
  // Of a word that counts so much, more would add as much again at most (k of BM25).
  const ENOUGH = 8

  const answer = globalThis.postMessage.bind(globalThis)
  const stems = new Map()
  const pages = new Map()
  const spread = new Map()
  let config
  let separator
  let stemOfLunr
  let meanLength
  let asked = []

  // Returns the stem of a word. It is its own stem, and that of "classify" is that of "classification".
  function stem(word) {
    if (stems.has(word)) return stems.get(word)
    let [before, after] = ["", word]
    while (after !== before) {
      before = after
      after = stemOfLunr(new lunr.Token(before)).toString().replace(/(...)i$/, "$1")
    }
    stems.set(word, after)
    return after
  }

  // Lets lunr index the same stems.
  function replaceStemmer() {
    stemOfLunr = lunr.stemmer
    lunr.stemmer = (token) => token.update(stem)
    lunr.Pipeline.registerFunction(lunr.stemmer, "stemmerOfThisSite")
  }

  function split(text) {
    return text.toLowerCase().replace(/<[^>]*>|&\w+;/g, " ").split(separator).filter((word) => word)
  }

  function stemsOf(text) {
    return split(text).filter(lunr.stopWordFilter).map(stem)
  }

  // Collects the words of each page, and on how many pages each of them stands.
  function learn(docs) {
    for (const {location, title, text, boost} of docs) {
      const [address] = location.split("#")
      if (!pages.has(address)) {
        pages.set(address, {
          boost: boost ?? 1,
          title: new Set(stemsOf(title)),
          headings: new Set(),
          text: new Map(),
          length: 0,
        })
      }
      const page = pages.get(address)
      stemsOf(title).forEach((one) => page.headings.add(one))
      for (const one of stemsOf(text)) {
        page.text.set(one, (page.text.get(one) ?? 0) + 1)
        page.length += 1
      }
    }
    for (const {headings, text} of pages.values()) {
      for (const one of new Set([...headings, ...text.keys()])) spread.set(one, (spread.get(one) ?? 0) + 1)
    }
    meanLength = [...pages.values()].reduce((sum, page) => sum + page.length, 0) / pages.size
  }

  // Returns a word of the question as words of the site: itself, its two parts ("floorplan", "4bit"), or those that it
  // begins, as while somebody types.
  function known(word) {
    const group = SAME.map((words) => words.map(stem)).find((words) => words.includes(stem(word))) ?? []
    const same = group.filter((one) => spread.has(one))
    if (spread.has(stem(word)) || same.length) return [{word, stems: [...new Set([stem(word), ...same])]}]
    for (let end = word.length - 1; end > 0; end -= 1) {
      const parts = [word.slice(0, end), word.slice(end)]
      if (parts.every((part) => spread.has(stem(part)) && (part.length > 2 || /\d/.test(part)))) {
        return parts.map((part) => ({word: part, stems: [stem(part)]}))
      }
    }
    return [{word, stems: [...spread.keys()].filter((one) => one.startsWith(word))}]
  }

  // Returns the words of a question that tell something. Neighbors also count as one word ("point cloud", "target
  // modules" of `target_modules`).
  function understand(question) {
    const typed = split(question)
    const telling = typed.filter((word) => lunr.stopWordFilter(word))
    const words = telling.length ? telling : typed
    const pairs = words.slice(1).flatMap((word, place) => [words[place] + word, `${words[place]}_${word}`])
    const joined = pairs.filter((pair) => spread.has(stem(pair)))
    return [...words.flatMap(known), ...joined.map((word) => ({word, stems: [stem(word)], isPair: true}))]
  }

  // Returns the question in the language of lunr: whole stems, and beginnings or misspelled words where there is none.
  function inLunr({word, stems}) {
    const isWhole = stems.includes(stem(word)) || stems.some((one) => !one.startsWith(word))
    if (isWhole) return stems.map((one) => `${one}^1`).join(" ")
    return stems.length ? `${word}*` : `${word}~1`
  }

  function weight(word) {
    return COMMON_WORDS.some((common) => stem(common) === stem(word)) ? COMMON : 1
  }

  // Returns how much a page has of a word as BM25 with fields does: more of a rare one, less for each further time.
  function share(page, one) {
    const {title} = config.fields
    let amount = (page.text.get(one) ?? 0) / (0.5 + 0.5 * page.length / meanLength)
    if (page.title.has(one)) amount += title.boost
    if (page.headings.has(one)) amount += HEADING
    const rarity = Math.log(1 + (pages.size - spread.get(one) + 0.5) / (spread.get(one) + 0.5))
    return rarity * amount / (ENOUGH + amount)
  }

  function score(page) {
    const found = asked.map(({word, stems}) => weight(word) * Math.max(0, ...stems.map((one) => share(page, one))))
    return found.reduce((sum, one) => sum + one) * page.boost * (1 + namedBy(page.title))
  }

  // Returns how well a title answers: not, unless it has all of the question; wholly, if it has nothing else.
  function namedBy(title) {
    const single = asked.filter(({isPair}) => !isPair)
    const nouns = single.filter(({word}) => weight(word) === 1)
    const words = nouns.length ? nouns : single
    const hasAll = words.every(({stems}) => stems.some((one) => title.has(one)))
    return hasAll ? 0.5 + 0.5 * words.length / Math.max(words.length, title.size) : 0
  }

  // Names what a section has and lacks of the question as it was typed, for the line of missing words.
  function inTypedWords(terms) {
    const words = asked.filter(({isPair}) => !isPair)
    return Object.fromEntries(words.map(({word, stems}) => [word, terms[stems[0]] ?? terms[word] ?? false]))
  }

  addEventListener("message", ({data: message}) => {
    if (message.type === SETUP) {
      config = message.data.config
      replaceStemmer()
      separator = new RegExp(config.separator)
      learn(message.data.docs)
    }
    if (message.type === QUERY) {
      // Signs of lunr's own language are left to it.
      asked = /["+~^*]/.test(message.data) ? [] : understand(message.data)
      if (asked.length) message.data = asked.map(inLunr).join(" ")
    }
  })

  globalThis.postMessage = (message) => {
    if (message.type === RESULT && asked.length) {
      const {items} = message.data
      const scores = new Map(items.map((sections) => [sections, score(pages.get(sections[0].location.split("#")[0]))]))
      items.sort((one, other) => scores.get(other) - scores.get(one))
      items.flat().forEach((section) => { section.terms = inTypedWords(section.terms) })
    }
    answer(message)
  }
}

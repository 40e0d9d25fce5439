// Asks the search of a built site: `node ask_search.js SITE QUESTIONS`, QUESTIONS a JSON list of texts.
// Prints the pages that each question finds, best first. The site's own script answers, which browsers run in a worker.
const fs = require("fs")
const path = require("path")

const [site, questions] = process.argv.slice(2)
const answers = []
const listeners = []

// What the script expects of a worker.
globalThis.self = globalThis
globalThis.addEventListener = (kind, listener) => { listeners.push(listener) }
globalThis.postMessage = (message) => answers.shift()(message.data)

function ask(type, data) {
  return new Promise((resolve) => {
    answers.push(resolve)
    const event = {data: {type, data}}
    listeners.forEach((listener) => listener(event))
  })
}

const SETUP = 0
const QUERY = 2

async function main() {
  const workers = path.resolve(site, "assets", "javascripts", "workers")
  require(path.join(workers, fs.readdirSync(workers).find((name) => /^search\..*\.js$/.test(name))))
  const index = JSON.parse(fs.readFileSync(path.join(site, "search", "search_index.json"), "utf-8"))
  await ask(SETUP, {...index, options: {suggest: false}})
  const found = {}
  for (const question of JSON.parse(questions)) {
    const {items} = await ask(QUERY, question)
    found[question] = items.map((sections) => sections[0].location.split("#")[0])
  }
  console.log(JSON.stringify(found))
}

main()

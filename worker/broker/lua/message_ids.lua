-- Reads the task ids of some messages, without sending the messages to the caller.
--
-- messages   the list of a queue, or the hash sag.unacked; a key of another type counts as empty
-- cursor     0, or the cursor that the last call returned
-- count      number of messages to read, about
-- max_bytes  of a message; a larger one has no id
-- Returns {next cursor, '0' at the end, number of messages read, their cost, ids...}. The cost is in
-- bytes that Redis copies: to parse a message takes some ten times as long as to copy it.
--
-- Messages of this project's clients begin with their id; others are parsed.
local messages = unpack(KEYS)
local cursor, count, max_bytes = unpack(ARGV)

local cost = 0
local function id_of(text)
  cost = cost + #text
  if #text > tonumber(max_bytes) then return nil end
  local id = string.match(text, '^%[?{"headers": {"id": "([%w%._%-]+)"')
  if id then return id end
  cost = cost + 10 * #text
  local ok, entry = pcall(cjson.decode, text)
  if ok and type(entry) == 'table' and type(entry[1]) == 'table' then entry = entry[1] end
  if ok and type(entry) == 'table' and type(entry.headers) == 'table'
    and type(entry.headers.id) == 'string' then
    return entry.headers.id
  end
end

local kind = redis.call('TYPE', messages).ok
local texts, next_cursor = {}, '0'
if kind == 'list' then
  texts = redis.call('LRANGE', messages, cursor, cursor + count - 1)
  if #texts == tonumber(count) then next_cursor = tostring(cursor + count) end
elseif kind == 'hash' then
  local slice = redis.call('HSCAN', messages, cursor, 'COUNT', count)
  next_cursor = slice[1]
  for each = 2, #slice[2], 2 do texts[#texts + 1] = slice[2][each] end
end
local found = {next_cursor, #texts, 0}
for _, text in ipairs(texts) do found[#found + 1] = id_of(text) end
found[3] = cost
return found

-- Counts messages, and reads those that are taken next, without sending large ones to the caller.
--
-- unacked    hash of the messages that workers hold
-- lists      of waiting messages
-- max_bytes  longest message that is returned
-- Returns {number of held messages, {length of each list}, {next message of each list, or nil}}.
-- For a key of another type the number is Redis's error.
local unacked = unpack(KEYS)
local lists = {unpack(KEYS, 2)}
local max_bytes = unpack(ARGV)

local lengths, heads = {}, {}
for each, list in ipairs(lists) do
  local length = redis.pcall('LLEN', list)
  lengths[each], heads[each] = length, false
  if type(length) == 'number' and length > 0 then
    local head = redis.call('LINDEX', list, -1)
    if #head <= tonumber(max_bytes) then heads[each] = head end
  end
end
return {redis.pcall('HLEN', unacked), lengths, heads}

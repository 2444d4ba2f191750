-- Takes the next message: moves it from its list to the held messages in one step, so that no crash
-- can lose it. A message that is too large is dropped.
--
-- unacked        sag.unacked        hash        [message, exchange, queue] written under the tag
-- unacked_index  sag.unacked_index  sorted set  tag added, scored by the end of its lease
-- lists          of the queues      lists       in the order in which they are tried
-- tag
-- lease_s
-- max_bytes      of a message
-- queues         the queue of each list
-- Returns {index of the list, message}, {index of the list, '', bytes} for one that is too large,
-- or nothing. The first index is 0.
local unacked, unacked_index = unpack(KEYS)
local lists = {unpack(KEYS, 3)}
local tag, lease_s, max_bytes = unpack(ARGV)
local queues = {unpack(ARGV, 4)}
for number, list in ipairs(lists) do
  local message = redis.pcall('RPOP', list)
  if type(message) == 'table' then
    -- A key of another type blocks only its own queue; any other error concerns all of Redis.
    if not string.find(message.err, 'WRONGTYPE', 1, true) then return message end
    message = false
  end
  if message then
    if #message > tonumber(max_bytes) then return {number - 1, '', #message} end
    local held = '[' .. message .. ',"",' .. cjson.encode(queues[number]) .. ']'
    redis.call('HSET', unacked, tag, held)
    redis.call('ZADD', unacked_index, now_s() + lease_s, tag)
    return {number - 1, message}
  end
end
return false

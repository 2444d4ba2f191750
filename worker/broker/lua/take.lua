-- Takes the next message: off its list and into the book of held messages in one step, so that no
-- death in between loses it. One that is too large is dropped, and only its size is told.
--
-- KEYS[1]    sag.unacked        hash        [message, exchange, queue] under the tag
-- KEYS[2]    sag.unacked_index  sorted set  tag, by when its lease runs out (Unix seconds)
-- KEYS[3…]   the lists, first choice first
-- ARGV       tag, seconds of lease, largest message in bytes, then each list's queue
-- gives      {number of the list, message} | {number of the list, '', its bytes} | nothing
for number = 3, #KEYS do
  local message = redis.pcall('RPOP', KEYS[number])
  if type(message) == 'table' then
    -- What is no list stops only who pushes there; everything else is the server's refusal.
    if not string.find(message.err, 'WRONGTYPE', 1, true) then return message end
    message = false
  end
  if message then
    if #message > tonumber(ARGV[3]) then return {number - 3, '', #message} end
    local held = '[' .. message .. ',"",' .. cjson.encode(ARGV[number + 1]) .. ']'
    redis.call('HSET', KEYS[1], ARGV[1], held)
    redis.call('ZADD', KEYS[2], now_s() + ARGV[2], ARGV[1])
    return {number - 3, message}
  end
end
return false

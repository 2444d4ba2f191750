-- Puts a held message back into its list, unless somebody else did, or its lease was renewed.
--
-- KEYS[1]  sag.unacked        hash        tag removed
-- KEYS[2]  sag.unacked_index  sorted set  tag removed
-- KEYS[3]  the list       list        message added
-- ARGV     tag, message or '' to drop it, LPUSH (behind the others) or RPUSH (before them),
--          1 to do so only when the lease has run out
-- gives    1, or 0 when it was not put back
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return 0
end
if ARGV[4] == '1' then
  local untils = redis.call('ZSCORE', KEYS[2], ARGV[1])
  if untils and tonumber(untils) > now_s() then return 0 end
  -- Changes nothing, but is refused while there is no memory: then no lease can be renewed either.
  redis.call('ZADD', KEYS[2], 'XX', untils or 0, ARGV[1])
end
-- First, since what is no list refuses it: then the message stays held.
if ARGV[2] ~= '' then redis.call(ARGV[3], KEYS[3], ARGV[2]) end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
